// SPDX-License-Identifier: GPL-2.0-only
/*
 * oom ROUNDS BYTES CGROUP...: run cgroups out of memory, again and again (0: until SIGTERM).
 *
 * In each round one child for each cgroup named, which may be named twice, fills BYTES, waits at a
 * barrier until all have, and then grows until it is killed. A line a round: its milliseconds, how many children were killed,
 * and for each when it touched its last page (ns), which is when its OOM began.
 */
#include "helper.h"

/* More than any limit: a child that gets this far was not limited at all. */
#define MOST_BYTES (64L << 20)
#define MOST_CHILDREN 64

/* Whoever is ready writes to the one, and reads from the other what nobody writes. */
struct barrier {
	int ready[2];
	int open[2];
};

struct child {
	int cgroup;
	pid_t pid;
	volatile int64_t *touched;
};

static void meet(const struct barrier *barrier)
{
	char byte = 0;

	close(barrier->open[1]);
	if (write(barrier->ready[1], &byte, 1) != 1 || read(barrier->open[0], &byte, 1) < 0)
		err(1, "barrier");
}

static void grow(const struct child *child, long bytes, const struct barrier *barrier)
{
	volatile char *memory = reserve(MOST_BYTES);
	long at;

	for (at = 0; at < bytes; at += PAGE_BYTES)
		memory[at] = 1;
	meet(barrier);
	for (; at < MOST_BYTES; at += PAGE_BYTES) {
		*child->touched = now_ns();
		memory[at] = 1;
	}
	_exit(0);
}

static void start(struct child *child, long bytes, const struct barrier *barrier)
{
	*child->touched = 0;
	child->pid = fork_into(child->cgroup);
	if (child->pid < 0)
		err(1, "clone3");
	if (!child->pid)
		grow(child, bytes, barrier);
}

static void open_barrier(const struct barrier *barrier, int nr)
{
	char byte;

	close(barrier->ready[1]);
	for (int i = 0; i < nr; i++) {
		if (read(barrier->ready[0], &byte, 1) != 1)
			errx(1, "killed before the barrier");
	}
	/* Now no end to write to is left, and all reads return. */
	close(barrier->open[1]);
}

static int reap(const struct child *child)
{
	int status;

	while (waitpid(child->pid, &status, 0) < 0) {
		if (errno != EINTR)
			err(1, "waitpid");
	}
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

static void play(struct child *children, int nr, long bytes)
{
	int64_t began = now_ns();
	struct barrier barrier;
	int killed = 0;

	if (pipe2(barrier.ready, O_CLOEXEC) || pipe2(barrier.open, O_CLOEXEC))
		err(1, "pipe2");
	for (int i = 0; i < nr; i++)
		start(&children[i], bytes, &barrier);
	open_barrier(&barrier, nr);
	for (int i = 0; i < nr; i++)
		killed += reap(&children[i]);
	close(barrier.ready[0]);
	close(barrier.open[0]);

	printf("%.1f %d", (double)(now_ns() - began) / 1e6, killed);
	for (int i = 0; i < nr; i++)
		printf(" %lld", (long long)*children[i].touched);
	printf("\n");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct child children[MOST_CHILDREN];
	volatile int64_t *touched;
	long rounds, bytes;
	int nr = argc - 3;

	if (nr < 1 || nr > MOST_CHILDREN)
		errx(2, "usage: oom ROUNDS BYTES CGROUP...");
	rounds = strtol(argv[1], NULL, 10);
	bytes = strtol(argv[2], NULL, 10);
	touched = mmap(NULL, sizeof(*touched) * MOST_CHILDREN, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (touched == MAP_FAILED)
		err(1, "mmap");
	for (int i = 0; i < nr; i++) {
		children[i].cgroup = open_cgroup(argv[i + 3]);
		children[i].touched = &touched[i];
	}
	stop_on_term();
	for (long round = 0; !told_to_stop && (!rounds || round < rounds); round++)
		play(children, nr, bytes);
	return 0;
}
