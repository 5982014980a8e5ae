/* SPDX-License-Identifier: GPL-2.0 */
/*
 * fifo: tasks run in the order in which they became runnable.
 *
 * One queue is shared by all CPUs. A task that wakes up while a CPU is idle goes there at once;
 * any other joins the end of the queue, from which CPUs take their next task when they need one.
 * That is fair between tasks that use up their slices and hard on those that do not, so it is
 * a scheduler to learn from and to test with, not one to run a desktop on.
 *
 * It keeps more books than it needs, one of each kind that a scheduler keeps: counters,
 * tunables, and maps of tasks, of CPUs and of durations. All of them are read from outside.
 */
#include "vmlinux.h"
#include "cryoscope.bpf.h"

char _license[] SEC("license") = "GPL";

/* The queue. Ids of a scheduler's own queues are any numbers without the kernel's flag bits. */
#define FIFO_DSQ 0

/* Tasks that can be told apart; more are scheduled all the same, but not in the books. */
#define MAX_TASKS 10240

#define HIST_BUCKETS 16

/* Tunables: constants to the verifier, set before the scheduler is loaded. */
const volatile u64 slice_ns = 5 * 1000 * 1000;
/* Whether a task that wakes up may go straight to an idle CPU. */
const volatile bool direct_local = true;

/*
 * Counters. Several CPUs count at once, so they are added to atomically. Each is counted at one
 * place only, and where a map counts the same, both are counted there.
 */
u64 nr_enqueued;	/* tasks that joined the queue */
u64 nr_dispatched;	/* times that a CPU took its next task from the queue */
u64 nr_select_local;	/* tasks that went straight to an idle CPU */
u64 nr_running;		/* times that a task began to run */
u64 nr_stopping;	/* times that a task stopped running */
u64 nr_tasks;		/* tasks now in task_ctx */
u64 nr_untracked;	/* tasks that found no room in task_ctx */

/* The shortest and the longest time that a task ran without a break. */
u64 min_run_ns = ~0ULL;
u64 max_run_ns;

/* What is known of each task, by pid. */
struct run_stats {
	u64 nr_runs;
	u64 total_ns;
	u64 last_ns;
};

struct task_ctx {
	u64 cookie;		/* which of the tasks that had this pid; see forget() */
	s32 cpu;		/* where it ran last */
	u32 weight;
	char comm[16];
	struct run_stats runs;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_TASKS);
	__type(key, s32);
	__type(value, struct task_ctx);
} task_ctx SEC(".maps");

/* Kept with the task itself, without a lookup by key. Gone when the task is. */
struct task_times {
	u64 started_at;
	u64 queued_at;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task_times);
} task_times SEC(".maps");

/* What each CPU did. */
struct cpu_stats {
	u64 nr_enqueued;
	u64 nr_dispatched;
	u64 nr_running;
	u64 busy_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cpu_stats);
} cpu_stats SEC(".maps");

/* Why tasks joined the queue. Summed over reasons and CPUs, it is nr_enqueued again. */
enum fifo_reason {
	FIFO_WOKE_UP = 1,
	FIFO_WENT_ON = 2,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 8);
	__type(key, u32);
	__type(value, u64);
} reasons SEC(".maps");

/* How long tasks ran: bucket i counts runs of 2^i to 2^(i+1) times 16 microseconds. */
struct run_bucket {
	u64 count;
	u64 total_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HIST_BUCKETS);
	__type(key, u32);
	__type(value, struct run_bucket);
} run_hist SEC(".maps");

static struct cpu_stats *this_cpu(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&cpu_stats, &zero);
}

static void count_enqueued(u64 enq_flags)
{
	u32 reason = enq_flags & SCX_ENQ_WAKEUP ? FIFO_WOKE_UP : FIFO_WENT_ON;
	struct cpu_stats *cpu = this_cpu();
	u64 *count = bpf_map_lookup_elem(&reasons, &reason);

	/*
	 * Nothing else runs on this CPU meanwhile: sched_ext calls with interrupts off. So each of
	 * its own counts is behind the common one by at most one, at whatever instant one looks.
	 */
	__sync_fetch_and_add(&nr_enqueued, 1);
	if (cpu)
		cpu->nr_enqueued++;
	if (count)
		(*count)++;
}

s32 BPF_STRUCT_OPS(fifo_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	bool is_idle = false;
	s32 cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &is_idle);

	if (is_idle && direct_local) {
		__sync_fetch_and_add(&nr_select_local, 1);
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, 0);
	}
	return cpu;
}

void BPF_STRUCT_OPS(fifo_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct task_times *times = bpf_task_storage_get(&task_times, p, 0, 0);

	if (times)
		times->queued_at = bpf_ktime_get_ns();
	count_enqueued(enq_flags);
	scx_bpf_dsq_insert(p, FIFO_DSQ, slice_ns, enq_flags);
}

void BPF_STRUCT_OPS(fifo_dispatch, s32 cpu, struct task_struct *prev)
{
	struct cpu_stats *stats;

	if (!scx_bpf_dsq_move_to_local(FIFO_DSQ))
		return;
	__sync_fetch_and_add(&nr_dispatched, 1);
	stats = this_cpu();
	if (stats)
		stats->nr_dispatched++;
}

void BPF_STRUCT_OPS(fifo_running, struct task_struct *p)
{
	struct task_times *times = bpf_task_storage_get(&task_times, p, 0, 0);
	struct cpu_stats *cpu = this_cpu();

	__sync_fetch_and_add(&nr_running, 1);
	if (cpu)
		cpu->nr_running++;
	if (times)
		times->started_at = bpf_ktime_get_ns();
}

static void count_run(u64 ns)
{
	u32 i = 0, bucket = 0;
	struct run_bucket *b;

	for (i = 1; i < HIST_BUCKETS; i++)
		if (ns >> (14 + i))
			bucket = i;
	b = bpf_map_lookup_elem(&run_hist, &bucket);
	if (b) {
		__sync_fetch_and_add(&b->count, 1);
		__sync_fetch_and_add(&b->total_ns, ns);
	}
	/* Two CPUs may lose a record to each other; these are for the eye, not for sums. */
	if (ns < min_run_ns)
		min_run_ns = ns;
	if (ns > max_run_ns)
		max_run_ns = ns;
}

void BPF_STRUCT_OPS(fifo_stopping, struct task_struct *p, bool runnable)
{
	struct task_times *times = bpf_task_storage_get(&task_times, p, 0, 0);
	struct cpu_stats *cpu = this_cpu();
	struct task_ctx *ctx;
	s32 pid = p->pid;
	u64 ns;

	__sync_fetch_and_add(&nr_stopping, 1);
	/* A task that ran when the scheduler came has not been seen starting. */
	if (!times || !times->started_at)
		return;
	ns = bpf_ktime_get_ns() - times->started_at;
	times->started_at = 0;
	count_run(ns);
	if (cpu)
		cpu->busy_ns += ns;
	ctx = bpf_map_lookup_elem(&task_ctx, &pid);
	if (ctx) {
		ctx->cpu = bpf_get_smp_processor_id();
		ctx->runs.nr_runs++;
		ctx->runs.total_ns += ns;
		ctx->runs.last_ns = ns;
	}
}

void BPF_STRUCT_OPS(fifo_set_weight, struct task_struct *p, u32 weight)
{
	s32 pid = p->pid;
	struct task_ctx *ctx = bpf_map_lookup_elem(&task_ctx, &pid);

	if (ctx)
		ctx->weight = weight;
}

s32 BPF_STRUCT_OPS(fifo_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	/* Here memory may be allocated; the storage is there when the task first runs. */
	if (!bpf_task_storage_get(&task_times, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE))
		return -12; /* ENOMEM */
	return 0;
}

/* Called before the task runs under this scheduler for the first time. */
void BPF_STRUCT_OPS(fifo_enable, struct task_struct *p)
{
	struct task_ctx ctx = {
		.cookie = (u64)p,
		.cpu = -1,
		.weight = p->scx.weight,
	};
	s32 pid = p->pid;

	__builtin_memcpy(ctx.comm, p->comm, sizeof(ctx.comm));
	if (bpf_map_update_elem(&task_ctx, &pid, &ctx, BPF_ANY))
		__sync_fetch_and_add(&nr_untracked, 1);
	else
		__sync_fetch_and_add(&nr_tasks, 1);
}

/*
 * A dead task is taken out some time after its death, when its pid may already be another's:
 * only the entry that it made itself is removed.
 */
static void forget(struct task_struct *p)
{
	s32 pid = p->pid;
	struct task_ctx *ctx = bpf_map_lookup_elem(&task_ctx, &pid);

	if (ctx && ctx->cookie == (u64)p && !bpf_map_delete_elem(&task_ctx, &pid))
		__sync_fetch_and_sub(&nr_tasks, 1);
}

/* The task leaves for another scheduling class, or dies. */
void BPF_STRUCT_OPS(fifo_disable, struct task_struct *p)
{
	forget(p);
}

void BPF_STRUCT_OPS(fifo_exit_task, struct task_struct *p, struct scx_exit_task_args *args)
{
	forget(p);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(fifo_init)
{
	u32 woke_up = FIFO_WOKE_UP, went_on = FIFO_WENT_ON;
	u64 none = 0;

	/* All entries there will be, so that counting never allocates. */
	bpf_map_update_elem(&reasons, &woke_up, &none, BPF_ANY);
	bpf_map_update_elem(&reasons, &went_on, &none, BPF_ANY);
	return scx_bpf_create_dsq(FIFO_DSQ, -1);
}

SCX_OPS_DEFINE(fifo_ops,
	.select_cpu	= (void *)fifo_select_cpu,
	.enqueue	= (void *)fifo_enqueue,
	.dispatch	= (void *)fifo_dispatch,
	.running	= (void *)fifo_running,
	.stopping	= (void *)fifo_stopping,
	.set_weight	= (void *)fifo_set_weight,
	.init_task	= (void *)fifo_init_task,
	.exit_task	= (void *)fifo_exit_task,
	.enable		= (void *)fifo_enable,
	.disable	= (void *)fifo_disable,
	.init		= (void *)fifo_init,
	.name		= "fifo");
