// SPDX-License-Identifier: GPL-2.0-only
/*
 * migrate CGROUP OTHER SEEN: move tasks out of a cgroup and back, until SIGTERM.
 *
 * Its children idle; all leave, then all come back, and one that was killed is replaced. SEEN is the inherited descriptor of the map
 * "seen". At the end one line: how often a child was moved out, and how often while a handler ran.
 */
#include "helper.h"

#define CHILDREN 4

static pid_t idle_in(int cgroup)
{
	pid_t pid = fork_into(cgroup);

	if (pid < 0)
		err(1, "clone3");
	while (!pid)
		pause();
	return pid;
}

static int open_procs(const char *cgroup)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

/* Whether it was moved; a task that is dead cannot be. */
static bool move(pid_t pid, int procs)
{
	char text[16];
	int length = snprintf(text, sizeof(text), "%d", pid);

	if (write(procs, text, (size_t)length) == length)
		return true;
	if (errno != ESRCH)
		err(1, "moving %d", pid);
	return false;
}

int main(int argc, char **argv)
{
	long moves = 0, inside = 0;
	int cgroup, from, to, seen;
	pid_t children[CHILDREN];

	if (argc != 4)
		errx(2, "usage: migrate CGROUP OTHER SEEN");
	cgroup = open_cgroup(argv[1]);
	from = open_procs(argv[1]);
	to = open_procs(argv[2]);
	seen = (int)strtol(argv[3], NULL, 10);
	stop_on_term();
	for (int i = 0; i < CHILDREN; i++)
		children[i] = idle_in(cgroup);
	while (!told_to_stop) {
		for (int i = 0; i < CHILDREN; i++) {
			uint64_t before = call_under_way(seen);

			if (!move(children[i], to))
				continue;
			moves++;
			inside += before && call_under_way(seen) == before;
		}
		for (int i = 0; i < CHILDREN; i++) {
			move(children[i], from);
			if (waitpid(children[i], NULL, WNOHANG) == children[i])
				children[i] = idle_in(cgroup);
		}
	}
	for (int i = 0; i < CHILDREN; i++)
		kill(children[i], SIGKILL);
	printf("%ld %ld\n", moves, inside);
	return 0;
}
