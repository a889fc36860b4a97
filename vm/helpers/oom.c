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

struct child {
	int cgroup;
	pid_t pid;
	int ready; /* what it writes to when it is, or has closed when it is dead */
	volatile int64_t *touched;
};

static void make_pipe(int ends[2])
{
	if (pipe2(ends, O_CLOEXEC))
		err(1, "pipe2");
}

/* Nobody writes to the barrier: it is open once all have closed the end to write to. */
static void meet(int ready, const int barrier[2])
{
	char byte = 0;

	close(barrier[1]);
	if (write(ready, &byte, 1) != 1 || read(barrier[0], &byte, 1) < 0)
		err(1, "barrier");
}

static void grow(const struct child *child, long bytes, int ready, const int barrier[2])
{
	volatile char *memory = reserve(MOST_BYTES);
	long at;

	for (at = 0; at < bytes; at += PAGE_BYTES)
		memory[at] = 1;
	meet(ready, barrier);
	for (; at < MOST_BYTES; at += PAGE_BYTES) {
		*child->touched = now_ns();
		memory[at] = 1;
	}
	_exit(0);
}

static void start(struct child *child, long bytes, const int barrier[2])
{
	int ready[2];

	make_pipe(ready);
	*child->touched = 0;
	child->ready = ready[0];
	child->pid = fork_into(child->cgroup);
	if (child->pid < 0)
		err(1, "clone3");
	if (!child->pid)
		grow(child, bytes, ready[1], barrier);
	close(ready[1]);
}

/* A child may be killed before it is ready; then there is nothing to read. */
static void await(const struct child *child)
{
	char byte;

	while (read(child->ready, &byte, 1) < 0) {
		if (errno != EINTR)
			err(1, "read");
	}
	close(child->ready);
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
	int barrier[2];
	int killed = 0;

	make_pipe(barrier);
	for (int i = 0; i < nr; i++)
		start(&children[i], bytes, barrier);
	for (int i = 0; i < nr; i++)
		await(&children[i]);
	close(barrier[1]);
	for (int i = 0; i < nr; i++)
		killed += reap(&children[i]);
	close(barrier[0]);

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
