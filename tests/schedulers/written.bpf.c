/* SPDX-License-Identifier: GPL-2.0 */
/* Variables and arrays that the host writes. The program changes none but `seen`. */
#include "cryoscope.bpf.h"

char _license[] SEC("license") = "GPL";

enum mood { CALM, HASTY = 7 };

struct mixed {
	u8 small;
	s16 signed_one;
	u32 low : 3, middle : 17, high : 12;
	enum mood mood;
	bool flag;
	char text[8];
	u64 wide;
};

struct mixed mixed = { .small = 1, .middle = 5, .high = 9, .mood = CALM };
s64 limit = 100;
u64 seen;
const volatile u32 constant = 4242;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, u32);
	__type(value, struct mixed);
} shared SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, u32);
	__type(value, u64);
} each_cpu SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4);
	__type(key, u32);
	__type(value, u64);
} table SEC(".maps");

void BPF_STRUCT_OPS(written_enqueue, struct task_struct *p, u64 enq_flags)
{
	u32 key = 1;
	struct mixed *entry = bpf_map_lookup_elem(&shared, &key);
	u64 *own = bpf_map_lookup_elem(&each_cpu, &key);

	if (entry && own && bpf_map_lookup_elem(&table, &key))
		seen += entry->wide + *own + mixed.wide + constant;
	/* What the host writes reaches the program. */
	seen = limit;
	scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, SCX_SLICE_DFL, enq_flags);
}

SEC(".struct_ops.link") struct sched_ext_ops written_ops = {
	.enqueue	= (void *)written_enqueue,
	.name		= "written",
};
