//! QEMU's command line. Pure.

use std::ffi::OsString;
use std::os::fd::RawFd;

use crate::vm::topology::{Node, Place, Topology, bandwidth_mib, latency_ns};
use crate::vm::{Boot, VmSpec, kargs};
use crate::wire::PORT_NAME;

/// RAM below the PCI hole in MiB; the rest follows at 4 GiB. QEMU's q35 would choose by the
/// amount of RAM; it is told (`max-ram-below-4g`), so that both sides know.
pub(super) const LOW_MIB: u64 = 2048;

/// Descriptors that QEMU inherits, by number.
#[derive(Debug)]
pub(super) struct Fds {
    /// RAM of each node.
    pub(super) ram: Vec<RawFd>,
    /// The initramfs.
    pub(super) initrd: RawFd,
    /// QMP, a connected socket.
    pub(super) qmp: RawFd,
    /// The serial console, a connected socket.
    pub(super) console: RawFd,
    /// Frames, a connected socket.
    pub(super) frames: RawFd,
    /// The gdbstub, a connected socket.
    pub(super) gdb: RawFd,
    /// QEMU's own log, a pipe.
    pub(super) log: RawFd,
}

/// The kernel's command line. Places that no CPU was put into look like CPUs that may come later.
fn command_line(spec: &VmSpec) -> String {
    let cpus = spec.topology.cpus();
    let places = Grid::of(&spec.topology).cpus() > cpus;
    let limit = places.then(|| format!("possible_cpus={cpus}"));
    kargs::line(&limit.into_iter().chain(spec.kargs.iter().cloned()).collect::<Vec<_>>())
}

/// QEMU's arguments for a machine whose nodes have `node_mib` MiB of RAM each.
///
/// A q35 with nearly everything taken off it, which gets to the kernel's first word in 60 ms of CPU
/// time (140 ms as it comes, 130 ms for `pc`). A microvm would do no better: with ACPI, which NUMA
/// needs, it has no timer by which a stock kernel could calibrate, and without ACPI no PCI.
pub(super) fn qemu(spec: &VmSpec, parallel: bool, node_mib: &[u64], fds: &Fds) -> Vec<OsString> {
    let mut args = Args::default();
    let threads = if parallel { "multi" } else { "single" };
    args.flag("-nodefaults").flag("-no-user-config").flag("-no-reboot");
    // It goes when we are there: one that is off again before that would have ended for no reason.
    args.flag("-S");
    args.pair("-display", "none");
    args.pair("-accel", format!("tcg,thread={threads}"));
    // The virtual clock stands still while the machine is stopped, and so must the wall clock.
    args.pair("-rtc", "clock=vm");
    // `max` as it is ignores dies and shows one LLC for all CPUs; an Intel CPU shows one for each
    // die. The fifth level of page tables costs a workload 10 to 20 %. A kernel that is told that string
    // instructions are fast clears and copies by them, which is byte by byte here.
    let la57 = if spec.five_level_paging { "on" } else { "off" };
    let vendor = if spec.nested { "AuthenticAMD" } else { "GenuineIntel" };
    args.pair("-cpu", format!("max,vendor={vendor},la57={la57},erms=off,fsrm=off"));
    args.cpus(&spec.topology);
    args.memory(&spec.topology, node_mib, fds);
    args.kernel(spec, fds);
    args.devices(fds);
    args.0
}

/// How many of each level QEMU is told to have room for.
pub(super) struct Grid {
    sockets: u32,
    dies: u32,
    cores: u32,
    threads: u32,
}

impl Grid {
    pub(super) fn of(topology: &Topology) -> Grid {
        let nodes = topology.each_node();
        let most = |of: fn(&Node) -> u32| nodes.iter().map(of).max().unwrap_or(1);
        let sockets = nodes.iter().filter(|node| node.llcs > 0).count() as u32;
        let (dies, cores) = (most(|node| node.llcs), most(|node| node.cores));
        Grid { sockets, dies, cores, threads: most(|node| node.threads) }
    }

    /// CPUs that there is room for.
    pub(super) fn cpus(&self) -> u32 {
        self.sockets * self.dies * self.cores * self.threads
    }
}

#[derive(Default)]
struct Args(Vec<OsString>);

impl Args {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }

    fn pair(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.into());
        self
    }

    /// A node with CPUs is a socket, an LLC is a die. QEMU knows no sockets that differ: there, one
    /// has room for the largest, and CPUs are put where they are to be. The first is always there.
    fn cpus(&mut self, topology: &Topology) {
        let grid = Grid::of(topology);
        let Grid { sockets, dies, cores, threads } = grid;
        let (cpus, most) = (topology.cpus(), grid.cpus());
        let grid = format!("sockets={sockets},dies={dies},cores={cores},threads={threads}");
        if cpus == most {
            self.pair("-smp", format!("{cpus},{grid}"));
            return;
        }
        self.pair("-smp", format!("1,maxcpus={most},{grid}"));
        for place in (1..cpus).filter_map(|cpu| topology.place(cpu)) {
            let Place { llc_in_node, core, thread, node, .. } = place;
            self.pair(
                "-device",
                format!(
                    "max-x86_64-cpu,socket-id={node},die-id={llc_in_node},core-id={core},\
                     thread-id={thread}"
                ),
            );
        }
    }

    fn memory(&mut self, topology: &Topology, node_mib: &[u64], fds: &Fds) {
        self.pair("-m", format!("{}M", node_mib.iter().sum::<u64>()));
        let one = node_mib.len() == 1;
        self.pair(
            "-machine",
            format!(
                "q35,smm=off,sata=off,usb=off,smbus=off,vmport=off,\
                 dump-guest-core=off,mem-merge=off,max-ram-below-4g={LOW_MIB}M,{}",
                if one { "memory-backend=ram0" } else { "hmat=on" }
            ),
        );
        for (node, (mib, fd)) in (0..).zip(node_mib.iter().zip(&fds.ram)) {
            self.pair(
                "-object",
                format!(
                    "memory-backend-file,id=ram{node},size={mib}M,mem-path=/proc/self/fd/{fd},\
                     share=on"
                ),
            );
            if one {
                return;
            }
            let nearest = topology.nearest_cpus(node).unwrap_or(0);
            let ram = format!("node,nodeid={node},memdev=ram{node},initiator={nearest}");
            self.pair("-numa", ram);
            if nearest == node {
                self.pair("-numa", format!("cpu,node-id={node},socket-id={node}"));
            }
        }
        self.distances(topology);
    }

    /// How far nodes are from each other, as kernels show it and as they put nodes into tiers.
    fn distances(&mut self, topology: &Topology) {
        let nodes = topology.nodes();
        let pairs = || (0..nodes).flat_map(|from| (0..nodes).map(move |to| (from, to)));
        let far = |(from, to)| topology.distance(from, to).map(|distance| (from, to, distance));
        for (from, to, distance) in pairs().filter_map(far).filter(|(from, to, _)| from != to) {
            self.pair("-numa", format!("dist,src={from},dst={to},val={distance}"));
        }
        let with_cpus = |(from, ..): &(u32, u32, u8)| !topology.llcs_of_node(*from).is_empty();
        for (from, to, distance) in pairs().filter_map(far).filter(with_cpus) {
            let between = format!("hmat-lb,initiator={from},target={to},hierarchy=memory");
            let (latency, bandwidth) = (latency_ns(distance), bandwidth_mib(distance));
            self.pair("-numa", format!("{between},data-type=access-latency,latency={latency}"));
            self.pair(
                "-numa",
                format!("{between},data-type=access-bandwidth,bandwidth={bandwidth}M"),
            );
        }
    }

    fn kernel(&mut self, spec: &VmSpec, fds: &Fds) {
        let (Boot::Elf(path) | Boot::BzImage(path)) = &spec.boot;
        self.pair("-kernel", path);
        self.pair("-initrd", format!("/proc/self/fd/{}", fds.initrd));
        self.pair("-append", command_line(spec));
    }

    fn devices(&mut self, fds: &Fds) {
        // The stub itself is made when the first trap is set.
        let streams =
            [("qmp", fds.qmp), ("console", fds.console), ("frames", fds.frames), ("gdb", fds.gdb)];
        for (id, fd) in streams {
            self.pair("-chardev", format!("socket,id={id},fd={fd}"));
        }
        self.pair("-mon", "chardev=qmp,mode=control");
        self.pair("-serial", "chardev:console");
        self.pair("-device", "virtio-serial-pci,max_ports=2");
        self.pair("-device", format!("virtserialport,chardev=frames,name={PORT_NAME}"));
        // The only way in which QEMU tells a triple fault from a restart.
        self.pair("-d", "cpu_reset");
        self.pair("-D", format!("/proc/self/fd/{}", fds.log));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// The command line with one option on each line.
    fn line(spec: &VmSpec, parallel: bool, node_mib: &[u64]) -> String {
        let ram = (20..).take(node_mib.len()).collect();
        let fds = Fds { ram, initrd: 3, qmp: 4, console: 5, frames: 6, gdb: 8, log: 7 };
        let mut out = String::new();
        for arg in qemu(spec, parallel, node_mib, &fds) {
            let arg = arg.into_string().unwrap();
            let gap = if arg.starts_with('-') { "\n" } else { " " };
            out.extend([gap, &arg]);
        }
        out.trim_start().to_owned()
    }

    fn spec(boot: Boot, topology: &str) -> VmSpec {
        let topology = Topology::parse(topology).unwrap();
        VmSpec::new(boot, Arc::from([]), topology, 512 << 20)
    }

    #[test]
    fn a_flat_machine_has_one_piece_of_ram() {
        let mut spec = spec(Boot::Elf("/k/vmlinux".into()), "1n2l3c2t");
        spec.kargs = vec!["loglevel=4".into(), "a=b".into()];
        let golden = "\
-nodefaults
-no-user-config
-no-reboot
-S
-display none
-accel tcg,thread=single
-rtc clock=vm
-cpu max,vendor=GenuineIntel,la57=off,erms=off,fsrm=off
-smp 12,sockets=1,dies=2,cores=3,threads=2
-m 512M
-machine q35,smm=off,sata=off,usb=off,smbus=off,vmport=off,dump-guest-core=off,mem-merge=off,\
max-ram-below-4g=2048M,memory-backend=ram0
-object memory-backend-file,id=ram0,size=512M,mem-path=/proc/self/fd/20,share=on
-kernel /k/vmlinux
-initrd /proc/self/fd/3
-append console=ttyS0 panic=-1 oops=panic cryptomgr.notests mitigations=off no_timer_check tsc=reliable \
loglevel=4 a=b
-chardev socket,id=qmp,fd=4
-chardev socket,id=console,fd=5
-chardev socket,id=frames,fd=6
-chardev socket,id=gdb,fd=8
-mon chardev=qmp,mode=control
-serial chardev:console
-device virtio-serial-pci,max_ports=2
-device virtserialport,chardev=frames,name=cryoscope.frames
-d cpu_reset
-D /proc/self/fd/7";
        assert_eq!(line(&spec, false, &[512]), golden);
    }

    #[test]
    fn nodes_are_sockets_with_ram_of_their_own() {
        let mut spec = spec(Boot::BzImage("/k/vmlinuz".into()), "2n4l1c1t");
        spec.five_level_paging = true;
        let found = line(&spec, true, &[2048, 1024]);
        let golden = [
            "-accel tcg,thread=multi",
            "-cpu max,vendor=GenuineIntel,la57=on,erms=off,fsrm=off",
            "-smp 4,sockets=2,dies=2,cores=1,threads=1",
            "-m 3072M",
            "-object memory-backend-file,id=ram0,size=2048M,mem-path=/proc/self/fd/20,share=on",
            "-numa node,nodeid=0,memdev=ram0,initiator=0",
            "-numa cpu,node-id=0,socket-id=0",
            "-object memory-backend-file,id=ram1,size=1024M,mem-path=/proc/self/fd/21,share=on",
            "-numa node,nodeid=1,memdev=ram1,initiator=1",
            "-numa cpu,node-id=1,socket-id=1",
            "-numa dist,src=0,dst=1,val=20",
            "-numa dist,src=1,dst=0,val=20",
            "-numa hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-latency,latency=100",
            "-numa hmat-lb,initiator=0,target=0,hierarchy=memory,data-type=access-bandwidth,\
             bandwidth=102400M",
            "-numa hmat-lb,initiator=0,target=1,hierarchy=memory,data-type=access-latency,latency=200",
            "-numa hmat-lb,initiator=0,target=1,hierarchy=memory,data-type=access-bandwidth,\
             bandwidth=51200M",
            "-kernel /k/vmlinuz",
        ];
        let mut rest = found.lines();
        for option in golden {
            assert!(rest.any(|line| line == option), "{option} in its place in\n{found}");
        }
        assert!(!found.contains("memory-backend=ram0"), "{found}");
    }

    #[test]
    fn cpus_are_put_where_nodes_that_differ_have_them() {
        let spec = spec(Boot::Elf("/k/vmlinux".into()), "1n2l1c1t+1n1l1c2t+1n@17");
        let found = line(&spec, false, &[256, 128, 128]);
        let golden = [
            "-smp 1,maxcpus=8,sockets=2,dies=2,cores=1,threads=2",
            "-device max-x86_64-cpu,socket-id=0,die-id=1,core-id=0,thread-id=0",
            "-device max-x86_64-cpu,socket-id=1,die-id=0,core-id=0,thread-id=0",
            "-device max-x86_64-cpu,socket-id=1,die-id=0,core-id=0,thread-id=1",
            "-numa node,nodeid=0,memdev=ram0,initiator=0",
            "-numa cpu,node-id=0,socket-id=0",
            "-numa node,nodeid=1,memdev=ram1,initiator=1",
            "-numa cpu,node-id=1,socket-id=1",
            "-numa node,nodeid=2,memdev=ram2,initiator=0",
            "-numa dist,src=0,dst=1,val=17",
        ];
        let mut rest = found.lines();
        for option in golden {
            assert!(rest.any(|line| line == option), "{option} in its place in\n{found}");
        }
        assert!(found.contains(" possible_cpus=4"), "{found}");
        assert!(!found.contains("cpu,node-id=2"), "{found}");
        assert_eq!(found.matches("hmat-lb").count(), 2 * 2 * 3, "from nodes with CPUs");
    }
}
