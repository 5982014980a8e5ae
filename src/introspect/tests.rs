//! Opening a made-up kernel, reading it by type, and walking its structures.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use proptest::prelude::*;

use super::testing::{Guest, IMAGE};
use super::*;
use crate::btf::testing::Builder;
use crate::mem::{FakeMem, Gpa, GuestMem, Kva};

/// What of a memory differs from the one it was made from.
struct Changed {
    base: Arc<dyn GuestMem>,
    changes: FakeMem,
}

impl GuestMem for Changed {
    fn regions(&self) -> &[crate::mem::Region] {
        self.base.regions()
    }

    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), crate::mem::MemError> {
        // Changes are whole pages, reads in tests do not cross from one into another.
        match self.changes.read(at, buf) {
            Ok(()) => Ok(()),
            Err(_) => self.base.read(at, buf),
        }
    }
}

fn open(guest: Guest) -> Kernel {
    Kernel::open(guest.mem()).unwrap()
}

#[test]
fn a_kernel_is_opened_from_memory_alone() {
    let mut guest = Guest::new();
    guest.cpus = 3;
    let jiffies = guest.variable("jiffies_64", &77u64.to_le_bytes());
    let kernel = open(guest);
    assert_eq!(kernel.release(), "9.9.9-made-up");
    assert_eq!(kernel.nr_cpu_ids(), 3);
    assert_eq!(kernel.per_cpu_offset(2), Some(Guest::cpu_offset(2)));
    assert_eq!(kernel.per_cpu_offset(3), None);
    assert_eq!(kernel.symbols().lookup("jiffies_64"), [jiffies.0]);
    assert_eq!(kernel.read_u64(jiffies), Ok(77));
    assert_eq!(kernel.translate(Kva(IMAGE + 8)), Some(Gpa(0x20_0008)));
    assert!(kernel.btf().find_c("struct bpf_map").is_some());
    let e = kernel.per_cpu("jiffies_64", 3).unwrap_err();
    assert_eq!(e.to_string(), "there is no CPU 3: this machine has 0 to 2");
    let e = kernel.type_id("struct rq").unwrap_err();
    assert_eq!(e.to_string(), "the types of kernel 9.9.9-made-up have no 'struct rq'");
}

#[test]
fn memory_without_a_kernel_is_not_ready() {
    let e = Kernel::open(Arc::new(FakeMem::new())).unwrap_err();
    assert!(matches!(e, IntrospectError::NotYet(_)));
    assert_eq!(
        e.to_string(),
        "the guest kernel cannot be read yet: no VMCOREINFO in its RAM (kernels write it while \
         they start; CONFIG_VMCORE_INFO must be on)"
    );
}

#[test]
fn a_page_that_only_looks_like_vmcoreinfo_is_not_believed() {
    let text = "OSRELEASE=9.9.9-made-up\nSYMBOL(swapper_pg_dir)=ffffffff81000000\n\
                SYMBOL(_stext)=ffffffff81000000\nNUMBER(phys_base)=0\n";
    let mut decoy = FakeMem::new();
    decoy.write(Gpa(0x5000), text.as_bytes());
    let e = Kernel::open(Arc::new(decoy.clone())).unwrap_err();
    assert_eq!(
        e.to_string(),
        "the guest kernel cannot be read yet: 1 pages of its RAM look like VMCOREINFO, none is \
         in use (the one at 0x5000: the page table at 0x1000000 is not in RAM)"
    );
    // Beside a kernel, at a lower address, it changes nothing.
    let mut guest = Guest::new();
    let low = guest.alloc(3 * 4096);
    guest.write(Kva(low.0.next_multiple_of(4096)), text.as_bytes());
    assert_eq!(open(guest).release(), "9.9.9-made-up");
}

#[test]
fn a_leftover_of_another_release_is_not_believed() {
    let guest = Guest::new();
    let mem = guest.mem();
    // The same page tables hold, but the name of the running kernel is another one.
    let kernel = Kernel::open(mem.clone()).unwrap();
    let uts = kernel.symbols().address("init_uts_ns").unwrap().offset(4 + 130);
    let gpa = kernel.translate(uts).unwrap();
    let page = Gpa(gpa.0 & !4095);
    let mut bytes = vec![0; 4096];
    mem.read(page, &mut bytes).unwrap();
    bytes[(gpa.0 & 4095) as usize] = b'8';
    let mut changes = FakeMem::new();
    changes.write(page, &bytes);
    let e = Kernel::open(Arc::new(Changed { base: mem, changes })).unwrap_err();
    let want = "it is of 9.9.9-made-up, but the kernel is \"8.9.9-made-up\")";
    assert!(e.to_string().ends_with(want), "{e}");
}

#[test]
fn a_kernel_without_types_names_the_option() {
    let mut guest = Guest::new();
    guest.with_btf = false;
    let e = Kernel::open(guest.mem()).unwrap_err();
    assert_eq!(
        e.to_string(),
        "the guest kernel was built without CONFIG_DEBUG_INFO_BTF: it has no symbol __start_BTF"
    );
}

/// A guest with a task that points to itself and to a name, and their types.
fn tasks(guest: &mut Guest) -> (Kva, Kva) {
    let t = &mut guest.types;
    let int = t.int("int", 4, true);
    let long = t.int("long", 8, true);
    let char_ = t.int("char", 1, true);
    let comm = t.array(char_, 8);
    let state = t.enumeration("task_state", 4, false, &[("RUNNING", 0), ("DEAD", 16)]);
    let task = t.next_id() + 3;
    let task_ptr = t.ptr(task);
    let char_ptr = t.ptr(char_);
    let list = t.next_id() + 1 - 1;
    assert_eq!(list, task_ptr + 2);
    t.structure("list_head", 16, &[("next", 0, 0), ("prev", 0, 64)]);
    let made = t.bitfields(
        "task",
        96,
        &[
            ("pid", int, 0, 0),
            ("state", state, 32, 0),
            ("flag", int, 64, 3),
            ("wide", long, 67, 40),
            ("comm", comm, 128, 0),
            ("parent", task_ptr, 192, 0),
            ("path", char_ptr, 256, 0),
            ("tasks", list, 320, 0),
        ],
    );
    assert_eq!(made, task);
    let path = guest.alloc(32);
    guest.write(path, b"/bin/true\0");
    let at = guest.alloc(96);
    guest.write_u32(at, -5i32 as u32);
    guest.write_u32(at.offset(4), 16);
    guest.write_u64(at.offset(8), 0b101 | 0x80_0000_0001 << 3 | 1 << 43);
    guest.write(at.offset(16), b"kworker\0");
    guest.write_u64(at.offset(24), at.0);
    guest.write_u64(at.offset(32), path.0);
    (at, path)
}

#[test]
fn values_are_read_by_type() {
    let mut guest = Guest::new();
    let (at, path) = tasks(&mut guest);
    let other = guest.alloc(96);
    let kernel = open(guest);
    let task = kernel.object(at, "struct task").unwrap();
    let member = |path: &str| task.member(path).unwrap();
    assert_eq!(member("pid").i64(), Ok(-5));
    assert_eq!(member("pid").u64(), Ok(-5i64 as u64));
    assert_eq!(member("state").u64(), Ok(16));
    assert_eq!(member("state").enum_name(), Ok(Some("DEAD".into())));
    assert_eq!(member("flag").i64(), Ok(-3), "three bits, signed");
    assert_eq!(member("wide").i64(), Ok(0x80_0000_0001 - (1 << 40)), "across bytes");
    assert_eq!(member("comm").string(), Ok("kworker".into()));
    assert_eq!(member("comm[1]").u64(), Ok(u64::from(b'w')));
    assert_eq!(member("path").string(), Ok("/bin/true".into()));
    assert_eq!(member("path").ptr(), Ok(path));
    assert_eq!(member("parent.parent.parent.pid").i64(), Ok(-5), "through pointers");
    assert_eq!(member("tasks").container_of("struct task", "tasks").unwrap().address(), at);
    assert_eq!(member("parent").deref().unwrap().size(), 96);
    assert_eq!(task.member_if_any("pidd").unwrap().map(|o| o.size()), None);
    assert_eq!(format!("{:?}", member("parent")), format!("(struct task *) {}", at.offset(24)));

    let fails = |path: &str| task.member(path).map(|o| o.u64()).unwrap_err().to_string();
    assert!(fails("pidd").starts_with("struct task has no member \"pidd\"; it has pid, state"));
    assert_eq!(fails("parent..pid"), "path \"parent..pid\" has an empty component");
    let long = ["parent"; 20].join(".");
    assert_eq!(fails(&long), format!("path \"{long}\" follows more than 16 pointers"));
    let null = kernel.object(other, "struct task").unwrap();
    let e = null.member("parent.pid").unwrap_err().to_string();
    assert_eq!(e, format!("the struct task * at {} is null", other.offset(24)));
    let e = member("comm").u64().unwrap_err().to_string();
    assert_eq!(e, format!("the char[8] at {} is not a number", at.offset(16)));
    let e = task.bytes(64).unwrap_err().to_string();
    assert_eq!(e, "struct task takes 96 bytes, more than 64");
}

#[test]
fn per_cpu_variables_have_one_address_per_cpu() {
    let mut guest = Guest::new();
    guest.types.int("int", 4, true);
    guest.percpu_variable("counter", &[1, 2]);
    let kernel = open(guest);
    let on = |cpu| kernel.per_cpu_object("counter", "int", cpu).unwrap().u64();
    assert_eq!((on(0), on(1)), (Ok(1), Ok(2)));
}

#[test]
fn lists_are_followed_to_their_end_and_no_further() {
    let mut guest = Guest::new();
    let (task, _) = tasks(&mut guest);
    let head = guest.alloc(16);
    let second = guest.alloc(96);
    guest.write_u32(second, 9);
    let (a, b) = (task.offset(40), second.offset(40));
    for (from, to) in [(head, a), (a, b), (b, head)] {
        guest.write_u64(from, to.0);
    }
    // Other lists: one that ends at null, one that ends at an odd value, two that do not end.
    let chain: Vec<Kva> = (0..4).map(|_| guest.alloc(16)).collect();
    guest.write_u64(chain[0], chain[1].0);
    guest.write_u64(chain[2], chain[3].0);
    guest.write_u64(chain[3], 7);
    let circle: Vec<Kva> = (0..3).map(|_| guest.alloc(16)).collect();
    guest.write_u64(circle[0], circle[1].0);
    guest.write_u64(circle[1], circle[2].0);
    guest.write_u64(circle[2], circle[1].0);
    let torn = guest.alloc(16);
    guest.write_u64(torn, 0xdead_0000_0000_0100);
    let kernel = open(guest);

    let list = kernel.object(head, "struct list_head").unwrap();
    let found = list.list("struct task", "tasks", 10).unwrap().complete().unwrap();
    let pids: Vec<_> = found.iter().map(|t| t.member("pid").unwrap().i64().unwrap()).collect();
    assert_eq!(pids, [-5, 9]);
    let cut = list.list("struct task", "tasks", 1).unwrap();
    assert_eq!(cut.items.len(), 1);
    let text = format!("the list at {head} goes on after 1 elements");
    assert_eq!(cut.error.unwrap().to_string(), text);

    assert_eq!(kernel.hlist(chain[0], 10).complete(), Ok(vec![chain[1]]));
    assert_eq!(kernel.hlist_nulls(chain[2], 10).complete(), Ok(vec![chain[3]]));
    let walk = kernel.hlist(circle[0], 1000);
    assert_eq!(walk.items, circle[1..]);
    let text = format!("the hlist at {} runs in a circle: {} comes up twice", circle[0], circle[1]);
    assert_eq!(walk.error.unwrap().to_string(), text);
    let walk = kernel.list(torn, 1000);
    assert_eq!(walk.items, [Kva(0xdead_0000_0000_0100)]);
    assert_eq!(
        walk.error.unwrap().to_string(),
        format!(
            "the list at {torn} cannot be followed: cannot read 8 bytes at 0xdead000000000100: \
             0xdead000000000100 is not a canonical address"
        )
    );
}

#[test]
fn trees_are_walked_in_the_order_of_their_ids() {
    let mut guest = Guest::new();
    let maps: Vec<Kva> = (0..70).map(|i| guest.other(&format!("m{i}"), 27)).collect();
    // A tree of one element has no node; one whose shifts do not fall is damaged.
    let single = guest.alloc(24);
    guest.write_u64(single.offset(8), maps[0].0);
    let empty = guest.alloc(24);
    let bad = guest.alloc(24);
    let node = guest.alloc(552);
    guest.write(node, &[6]);
    guest.write_u64(node.offset(40), node.0 | 2);
    guest.write_u64(bad.offset(8), node.0 | 2);
    let kernel = open(guest);
    let idr = kernel.symbols().address("map_idr").unwrap();
    let all = kernel.idr(idr, 1000).unwrap().complete().unwrap();
    let want: Vec<_> = maps.iter().enumerate().map(|(i, at)| (i as u64 + 2, *at)).collect();
    assert_eq!(all, want);
    assert_eq!(kernel.xarray(single, 9).unwrap().complete(), Ok(vec![(0, maps[0])]));
    assert_eq!(kernel.xarray(empty, 9).unwrap().complete(), Ok(vec![]));
    assert_eq!(
        kernel.xarray(bad, 9).unwrap().error.unwrap().to_string(),
        format!("the xarray at {bad} is damaged: the node at {node} has shift 6")
    );
    let cut = kernel.idr(idr, 10).unwrap();
    assert_eq!(cut.items.len(), 10);
    let text = format!("the idr at {} goes on after 10 elements", idr.offset(0));
    assert_eq!(cut.error.unwrap().to_string(), text);
}

/// The types of the made-up kernel stay what they are, whatever order tests add theirs in.
#[test]
fn the_made_up_types_are_valid() {
    let mut types = Builder::new();
    super::testing::kernel_types(&mut types);
    assert!(types.parse().find_c("spinlock_t").is_some());
}

/// A guest with maps, and those of its pages that hold something.
fn busy() -> &'static (Arc<dyn GuestMem>, Vec<Gpa>) {
    static BUSY: OnceLock<(Arc<dyn GuestMem>, Vec<Gpa>)> = OnceLock::new();
    BUSY.get_or_init(|| {
        let mem = super::bpf::tests::busy_guest().mem();
        let starts = mem.regions().iter().flat_map(|r| {
            let start = r.start.0;
            (0..r.len / 4096).map(move |i| Gpa(start + i * 4096))
        });
        let holds_something = |page: &Gpa| {
            let mut bytes = [0; 4096];
            mem.read(*page, &mut bytes).unwrap();
            bytes != [0; 4096]
        };
        let pages = starts.filter(holds_something).collect();
        (mem, pages)
    })
}

/// Eight bytes that a hostile guest changes.
#[derive(Clone, Debug)]
struct Hit {
    page: prop::sample::Index,
    word: usize,
    value: u64,
    /// Only a little, so that pointers stay plausible.
    small: bool,
}

fn hits() -> impl Strategy<Value = Vec<Hit>> {
    let hit = (any::<prop::sample::Index>(), 0usize..512, any::<u64>(), any::<bool>());
    let hit = hit.prop_map(|(page, word, value, small)| Hit { page, word, value, small });
    prop::collection::vec(hit, 1..24)
}

fn hit(hits: &[Hit]) -> Changed {
    let (mem, pages) = busy();
    let mut changed = Changed { base: mem.clone(), changes: FakeMem::new() };
    for Hit { page, word, value, small } in hits {
        let page = pages[page.index(pages.len())];
        let mut bytes = [0; 4096];
        changed.read(page, &mut bytes).unwrap();
        let word = &mut bytes[word * 8..word * 8 + 8];
        let old = u64::from_le_bytes(word.try_into().unwrap());
        let new = if *small { old ^ (value & 0xff8) } else { *value };
        word.copy_from_slice(&new.to_le_bytes());
        changed.changes.write(page, &bytes);
    }
    changed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever a guest has in its memory, opening it and reading its maps ends without a panic.
    #[test]
    fn damaged_guests_are_survived(hits in hits()) {
        if let Ok(kernel) = Kernel::open(Arc::new(hit(&hits)))
            && let Ok(list) = kernel.maps()
        {
            let mut budget = Budget::new(1 << 24, Duration::from_secs(1));
            for map in &list.maps {
                let contents = kernel.copy_map(map, &mut budget).decode();
                prop_assert!(contents.data.len().unwrap_or(0) <= 1 << 24);
            }
        }
    }
}
