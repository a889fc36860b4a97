// SPDX-License-Identifier: GPL-2.0-only
/*
 * remote CGROUP OUTSIDE: charge a cgroup from outside, so that its OOMs outlive its tasks.
 *
 * A cgroup can be removed as soon as its last task is dead. So that an OOM of it can be under way
 * then, each round has a process inside, the owner of its memory and idle, and one that shares that
 * memory (CLONE_VM) and has moved outside: what it touches is charged to the owner's cgroup, as
 * long as the owner lives. A round begins with a line on stdin. It prints the owner's process ID,
 * and when both processes are gone its milliseconds.
 */
#include "helper.h"

#include <sched.h>
#include <sys/prctl.h>

/* Beyond the limit, and an end for one that survives the owner. */
#define MOST_BYTES (16L << 20)
#define STACK_BYTES 65536

static char stack[STACK_BYTES] __attribute__((aligned(16)));

static int touch_outside(void *arg)
{
	volatile char *memory;
	int procs = *(int *)arg;

	if (write(procs, "0", 1) != 1)
		err(1, "moving outside");
	memory = reserve(MOST_BYTES);
	for (long at = 0; at < MOST_BYTES; at += PAGE_BYTES)
		memory[at] = 1;
	_exit(0);
}

static void own(int procs)
{
	if (clone(touch_outside, stack + STACK_BYTES, CLONE_VM | SIGCHLD, &procs) < 0)
		err(1, "clone");
	for (;;)
		pause();
}

static void play(const char *path, int procs)
{
	int64_t began = now_ns();
	int cgroup = open_cgroup(path);
	pid_t owner = fork_into(cgroup);

	if (owner < 0)
		err(1, "clone3");
	if (!owner)
		own(procs);
	close(cgroup);
	printf("%d\n", owner);
	fflush(stdout);
	/* The other one, an orphan in the end, becomes our child. */
	while (wait(NULL) > 0 || errno == EINTR)
		;
	printf("%.1f\n", (double)(now_ns() - began) / 1e6);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	char path[4096];
	char line[8];
	int procs;

	if (argc != 3)
		errx(2, "usage: remote CGROUP OUTSIDE");
	snprintf(path, sizeof(path), "%s/cgroup.procs", argv[2]);
	procs = open(path, O_WRONLY | O_CLOEXEC);
	if (procs < 0)
		err(1, "%s", path);
	if (prctl(PR_SET_CHILD_SUBREAPER, 1))
		err(1, "prctl");
	while (fgets(line, sizeof(line), stdin))
		play(argv[1], procs);
	return 0;
}
