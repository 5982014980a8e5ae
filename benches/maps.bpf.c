/* SPDX-License-Identifier: GPL-2.0 */
/* Maps of many sizes, for measuring; the scheduling itself is the least that works. */
#include "cryoscope.bpf.h"

char _license[] SEC("license") = "GPL";

#define ENTRIES 100000

/* What a scheduler might know of a task. */
struct known {
	u64 runtime_ns;
	s64 lag;
	u32 weight;
	s32 cpu;
	char comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ENTRIES);
	__type(key, u32);
	__type(value, struct known);
} big SEC(".maps");

/* Arrays of 64 KiB to 64 MiB. */
#define SIZED(name, len)				\
	struct {					\
		__uint(type, BPF_MAP_TYPE_ARRAY);	\
		__uint(max_entries, (len) / 8);		\
		__type(key, u32);			\
		__type(value, u64);			\
	} name SEC(".maps")

SIZED(k64, 64 << 10);
SIZED(m1, 1 << 20);
SIZED(m4, 4 << 20);
SIZED(m16, 16 << 20);
SIZED(m64, 64 << 20);

u64 nr_filled;

static long fill(u32 i, void *context)
{
	struct known value = { .runtime_ns = 1000ULL * i * i, .lag = -(s64)i, .weight = 1 + i % 10000 };
	u32 key = i * 2654435761U;

	value.cpu = i % 64;
	value.comm[0] = 'a' + i % 26;
	value.comm[1] = '0' + i % 10;
	if (bpf_map_update_elem(&big, &key, &value, BPF_ANY))
		return 1;
	nr_filled++;
	return 0;
}

s32 BPF_STRUCT_OPS_SLEEPABLE(maps_init)
{
	bpf_loop(ENTRIES, fill, 0, 0);
	return 0;
}

void BPF_STRUCT_OPS(maps_enqueue, struct task_struct *p, u64 enq_flags)
{
	scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, SCX_SLICE_DFL, enq_flags);
}

/* Keeps the arrays in the object. */
void BPF_STRUCT_OPS(maps_exit, struct scx_exit_info *info)
{
	u32 zero = 0;

	bpf_map_lookup_elem(&k64, &zero);
	bpf_map_lookup_elem(&m1, &zero);
	bpf_map_lookup_elem(&m4, &zero);
	bpf_map_lookup_elem(&m16, &zero);
	bpf_map_lookup_elem(&m64, &zero);
}

SCX_OPS_DEFINE(maps_ops,
	.enqueue	= (void *)maps_enqueue,
	.init		= (void *)maps_init,
	.exit		= (void *)maps_exit,
	.name		= "maps");
