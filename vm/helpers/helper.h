/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the helpers of the races share: the time, children inside a cgroup, memory that grows,
 * and a look at whether a handler is being called. A helper that cannot go on ends with a message.
 */
#ifndef BPFOOM_HELPER_H
#define BPFOOM_HELPER_H

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096L

/* The shape of the map "seen": handlers count in slots 0 and 1 their calls' begin and end. */
#define SLOTS 32

static volatile sig_atomic_t told_to_stop;

static inline void on_term(int number)
{
	(void)number;
	told_to_stop = 1;
}

/* SIGTERM ends the work after the present round. */
static inline void stop_on_term(void)
{
	struct sigaction action = { .sa_handler = on_term };

	if (sigaction(SIGTERM, &action, NULL))
		err(1, "sigaction");
}

/* On the clock of bpf_ktime_get_ns(). */
static inline int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static inline int open_cgroup(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

/* fork() whose child begins its life inside the cgroup; -1 with errno. */
static inline pid_t fork_into(int cgroup)
{
	struct clone_args args = {
		.flags = CLONE_INTO_CGROUP,
		.exit_signal = SIGCHLD,
		.cgroup = (uint64_t)cgroup,
	};

	return (pid_t)syscall(SYS_clone3, &args, sizeof(args));
}

/* Memory that is charged page by page, as it is touched. */
static inline volatile char *reserve(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		err(1, "mmap");
	if (madvise(memory, bytes, MADV_NOHUGEPAGE) && errno != EINVAL)
		err(1, "madvise");
	return memory;
}

/*
 * The number of the handler's call that is under way, or 0. An action with the same call before and
 * after it was done while a handler ran.
 */
static inline uint64_t call_under_way(int seen)
{
	uint64_t slots[SLOTS];
	uint32_t key = 0;
	union bpf_attr attr = {
		.map_fd = (uint32_t)seen,
		.key = (uint64_t)(uintptr_t)&key,
		.value = (uint64_t)(uintptr_t)slots,
	};

	if (syscall(SYS_bpf, BPF_MAP_LOOKUP_ELEM, &attr, sizeof(attr)))
		err(1, "BPF_MAP_LOOKUP_ELEM");
	return slots[0] == slots[1] ? 0 : slots[0];
}

#endif
