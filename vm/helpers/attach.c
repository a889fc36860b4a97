// SPDX-License-Identifier: GPL-2.0-only
/*
 * attach ROUNDS CGROUP MAP MAP: two threads attach a handler to one cgroup at the same time.
 *
 * The maps are inherited descriptors of struct_ops maps. In each round both threads agree on a
 * moment and create a link then. One must win; the link is closed again, and with it detached. At
 * the end one line: the rounds, in how many both calls were under way at once, wins of each thread.
 * Ends with a message if not exactly one has won, or the other did not get EEXIST.
 */
#include "helper.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

/* Younger than the headers: the kernel's series defines it. */
#define F_CGROUP_FD (1U << 7)

struct contender {
	pthread_t thread;
	int map;
	int link;
	int error;
	int64_t began, ended;
};

static struct contender contenders[2];
static int cgroup;
static long rounds;

/* Between two rounds others run: the OOMs. */
#define PAUSE_US 500

/* On a CPU of its own, which a thread leaves for nobody, but for PAUSE_US. */
static void occupy(size_t cpu)
{
	struct sched_param priority = { .sched_priority = 1 };
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(cpu, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		err(1, "sched_setaffinity");
	if (sched_setscheduler(0, SCHED_FIFO, &priority))
		err(1, "sched_setscheduler");
}

static pthread_barrier_t between;

static void wait_between(void)
{
	int error = pthread_barrier_wait(&between);

	if (error && error != PTHREAD_BARRIER_SERIAL_THREAD)
		errx(1, "pthread_barrier_wait: %s", strerror(error));
}

/* For a CPU that a busy host has just woken to push none of the two aside when both begin. */
#define LEAD_NS 5000000

static atomic_long arrived;
static _Atomic int64_t start;

/* Both have set the start before both have arrived; then they spin until it has come. */
static void meet(long round)
{
	atomic_store(&start, now_ns() + LEAD_NS);
	atomic_fetch_add(&arrived, 1);
	while (atomic_load(&arrived) < 2 * (round + 1) || now_ns() < atomic_load(&start))
		;
}

static void attach(struct contender *own)
{
	union bpf_attr attr = {
		.link_create = {
			.map_fd = (uint32_t)own->map,
			.target_fd = (uint32_t)cgroup,
			.attach_type = BPF_STRUCT_OPS,
			.flags = F_CGROUP_FD,
		},
	};

	own->began = now_ns();
	own->link = (int)syscall(SYS_bpf, BPF_LINK_CREATE, &attr, sizeof(attr));
	own->error = own->link < 0 ? errno : 0;
	own->ended = now_ns();
}

static void *contend(void *arg)
{
	occupy(1);
	for (long round = 0; round < rounds; round++) {
		meet(round);
		attach(arg);
		/* For the first thread to look at what came of it, and for both to go on. */
		wait_between();
		wait_between();
	}
	return NULL;
}

static int winner(void)
{
	int first = contenders[0].error, second = contenders[1].error;

	if (!first && second == EEXIST)
		return 0;
	if (first == EEXIST && !second)
		return 1;
	errx(1, "two at once: errno %d and %d", first, second);
}

static bool at_once(void)
{
	return contenders[0].began < contenders[1].ended &&
	       contenders[1].began < contenders[0].ended;
}

static void judge(void)
{
	long overlaps = 0, wins[2] = { 0, 0 };

	occupy(0);
	for (long round = 0; round < rounds; round++) {
		int won;

		meet(round);
		attach(&contenders[0]);
		wait_between();
		won = winner();
		wins[won]++;
		overlaps += at_once();
		if (close(contenders[won].link))
			err(1, "close");
		usleep(PAUSE_US);
		wait_between();
	}
	printf("%ld %ld %ld %ld\n", rounds, overlaps, wins[0], wins[1]);
}

int main(int argc, char **argv)
{
	if (argc != 5)
		errx(2, "usage: attach ROUNDS CGROUP MAP MAP");
	rounds = strtol(argv[1], NULL, 10);
	cgroup = open_cgroup(argv[2]);
	contenders[0].map = (int)strtol(argv[3], NULL, 10);
	contenders[1].map = (int)strtol(argv[4], NULL, 10);
	errno = pthread_barrier_init(&between, NULL, 2);
	if (errno)
		err(1, "pthread_barrier_init");
	errno = pthread_create(&contenders[1].thread, NULL, contend, &contenders[1]);
	if (errno)
		err(1, "pthread_create");
	judge();
	pthread_join(contenders[1].thread, NULL);
	return 0;
}
