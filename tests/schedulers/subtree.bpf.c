/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A scheduler that lets others be attached to cgroups below its own, and such another one: the
 * same source twice, with SUB for the lower one. The kernel wants the form of struct_ops that
 * counts CPUs in topological order, and an arena, of both. The cgroup of the lower one is told
 * when it is loaded.
 */
#include "cryoscope.bpf.h"

char _license[] SEC("license") = "GPL";

#define __arena __attribute__((address_space(1)))

struct {
	__uint(type, BPF_MAP_TYPE_ARENA);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 64);
} arena SEC(".maps");

u64 nr_queued;	/* in both: whose is meant must be said */
#ifdef SUB
u64 nr_sub_init;
#else
/* Apart from what changes all the time. */
u64 nr_attached SEC(".data.below") = 0;
u64 nr_detached SEC(".data.below") = 0;
u64 attached_to SEC(".data.below") = 0;
#endif
u64 pages;

s32 BPF_STRUCT_OPS_SLEEPABLE(subtree_init)
{
	pages = (u64)bpf_arena_alloc_pages(&arena, 0, 1, -1, 0);
	return 0;
}

s32 BPF_STRUCT_OPS_SLEEPABLE(subtree_init_task, struct task_struct *p,
			     struct scx_init_task_args *args)
{
#ifdef SUB
	nr_sub_init++;
#endif
	return 0;
}

void BPF_STRUCT_OPS(subtree_enqueue, struct task_struct *p, u64 enq_flags)
{
	nr_queued++;
	scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, SCX_SLICE_DFL, enq_flags);
}

#ifndef SUB
/* From 7.3 on, what a lower one queues is sent back to it where it was not granted the CPU. */
static __always_inline s32 grant_all(u64 cgroup_id)
{
#ifdef __kfunc_scx_bpf_sub_grant
	struct scx_cmask __arena *all = (struct scx_cmask __arena *)pages;
	u32 nr_cids = scx_bpf_nr_cids();

	/* The program's arena is the one that it names. */
	asm volatile("" : : "r"(&arena));
	if (!pages || nr_cids > 63)
		return -1;
	all->base = 0;
	all->nr_cids = nr_cids;
	all->alloc_words = 2;
	all->bits[0] = (1ULL << nr_cids) - 1;
	return scx_bpf_sub_grant(cgroup_id, SCX_CAP_ENQ_IMMED | SCX_CAP_ENQ, all, 0);
#else
	return 0;
#endif
}

s32 BPF_STRUCT_OPS(subtree_sub_attach, struct scx_sub_attach_args *args)
{
	attached_to = args->ops->sub_cgroup_id;
	nr_attached++;
	return grant_all(attached_to);
}

void BPF_STRUCT_OPS(subtree_sub_detach, struct scx_sub_detach_args *args)
{
	attached_to = 0;
	nr_detached++;
}

void BPF_STRUCT_OPS(subtree_dispatch, s32 cid, struct task_struct *prev)
{
	if (attached_to)
		scx_bpf_sub_dispatch(attached_to);
}
#endif

SEC(".struct_ops.link") struct sched_ext_ops_cid subtree_ops = {
	.enqueue	= (void *)subtree_enqueue,
	.init_task	= (void *)subtree_init_task,
	.init		= (void *)subtree_init,
#ifdef SUB
	.name		= "lower",
#else
	.dispatch	= (void *)subtree_dispatch,
	.sub_attach	= (void *)subtree_sub_attach,
	.sub_detach	= (void *)subtree_sub_detach,
	.name		= "upper",
#endif
};
