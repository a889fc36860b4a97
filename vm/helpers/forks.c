// SPDX-License-Identifier: GPL-2.0-only
/*
 * forks CGROUP SEEN: a storm of forks into a cgroup, until SIGTERM.
 *
 * Forks into it from outside, and every child touches memory and forks inside, as long as the
 * cgroup's pids.max allows. SEEN is the inherited descriptor of the map "seen". At the end one line:
 * how many forks from outside there were, and how many of them while a handler ran.
 */
#include "helper.h"

#include <sched.h>
#include <sys/prctl.h>

/* A part of the limit: it takes several to be out of memory. */
#define CHILD_BYTES (256L << 10)

static void live(void)
{
	volatile char *memory = reserve(CHILD_BYTES);

	for (long at = 0; at < CHILD_BYTES; at += PAGE_BYTES)
		memory[at] = 1;
	while (fork() > 0)
		sched_yield();
	/* The last generation, and the first that may not fork */
	for (;;)
		pause();
}

static void reap(void)
{
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

int main(int argc, char **argv)
{
	long forks = 0, inside = 0;
	int cgroup, seen;

	if (argc != 3)
		errx(2, "usage: forks CGROUP SEEN");
	cgroup = open_cgroup(argv[1]);
	seen = (int)strtol(argv[2], NULL, 10);
	if (prctl(PR_SET_CHILD_SUBREAPER, 1))
		err(1, "prctl");
	stop_on_term();
	while (!told_to_stop) {
		uint64_t before = call_under_way(seen);
		pid_t pid = fork_into(cgroup);

		if (!pid)
			live();
		if (pid < 0 && errno != EAGAIN)
			err(1, "clone3");
		if (pid > 0) {
			forks++;
			inside += before && call_under_way(seen) == before;
		} else {
			sched_yield();
		}
		reap();
	}
	printf("%ld %ld\n", forks, inside);
	return 0;
}
