//! QEMU's command line. Pure.

use std::ffi::OsString;
use std::os::fd::RawFd;

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

/// QEMU's arguments for a machine whose nodes have `node_mib` MiB of RAM each.
///
/// A q35 with nearly everything taken off it, which gets to the kernel's first word in 60 ms of CPU
/// time (140 ms as it comes, 130 ms for `pc`). A microvm would do no better: with ACPI, which NUMA
/// needs, it has no timer by which a stock kernel could calibrate, and without ACPI no PCI.
pub(super) fn qemu(spec: &VmSpec, parallel: bool, node_mib: &[u64], fds: &Fds) -> Vec<OsString> {
    let mut args = Args::default();
    let threads = if parallel { "multi" } else { "single" };
    args.flag("-nodefaults").flag("-no-user-config").flag("-no-reboot");
    args.pair("-display", "none");
    args.pair("-accel", format!("tcg,thread={threads}"));
    // The virtual clock stands still while the machine is stopped, and so must the wall clock.
    args.pair("-rtc", "clock=vm");
    // `max` as it is ignores dies and shows one LLC for all CPUs; an Intel CPU shows one for each
    // die. The fifth level of page tables costs a workload 10 to 20 %.
    let la57 = if spec.five_level_paging { "on" } else { "off" };
    let vendor = if spec.nested { "AuthenticAMD" } else { "GenuineIntel" };
    args.pair("-cpu", format!("max,vendor={vendor},la57={la57}"));
    let t = &spec.topology;
    args.pair(
        "-smp",
        format!(
            "{},sockets={},dies={},cores={},threads={}",
            t.cpus(),
            t.nodes(),
            t.llcs_per_node(),
            t.cores_per_llc(),
            t.threads_per_core()
        ),
    );
    args.memory(node_mib, fds);
    args.kernel(spec, fds);
    args.devices(fds);
    args.0
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

    fn memory(&mut self, node_mib: &[u64], fds: &Fds) {
        self.pair("-m", format!("{}M", node_mib.iter().sum::<u64>()));
        let one = node_mib.len() == 1;
        self.pair(
            "-machine",
            format!(
                "q35,smm=off,sata=off,usb=off,smbus=off,vmport=off,\
                 dump-guest-core=off,mem-merge=off,max-ram-below-4g={LOW_MIB}M{}",
                if one { ",memory-backend=ram0" } else { "" }
            ),
        );
        for (node, (mib, fd)) in node_mib.iter().zip(&fds.ram).enumerate() {
            self.pair(
                "-object",
                format!(
                    "memory-backend-file,id=ram{node},size={mib}M,mem-path=/proc/self/fd/{fd},\
                     share=on"
                ),
            );
            if !one {
                self.pair("-numa", format!("node,nodeid={node},memdev=ram{node}"));
                // A node is a socket, see `-smp` above.
                self.pair("-numa", format!("cpu,node-id={node},socket-id={node}"));
            }
        }
    }

    fn kernel(&mut self, spec: &VmSpec, fds: &Fds) {
        let (Boot::Elf(path) | Boot::BzImage(path)) = &spec.boot;
        self.pair("-kernel", path);
        self.pair("-initrd", format!("/proc/self/fd/{}", fds.initrd));
        self.pair("-append", kargs::line(&spec.kargs));
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
    use crate::vm::topology::Topology;
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
-display none
-accel tcg,thread=single
-rtc clock=vm
-cpu max,vendor=GenuineIntel,la57=off
-smp 12,sockets=1,dies=2,cores=3,threads=2
-m 512M
-machine q35,smm=off,sata=off,usb=off,smbus=off,vmport=off,dump-guest-core=off,mem-merge=off,\
max-ram-below-4g=2048M,memory-backend=ram0
-object memory-backend-file,id=ram0,size=512M,mem-path=/proc/self/fd/20,share=on
-kernel /k/vmlinux
-initrd /proc/self/fd/3
-append console=ttyS0 panic=-1 oops=panic cryptomgr.notests mitigations=off tsc=reliable \
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
            "-cpu max,vendor=GenuineIntel,la57=on",
            "-smp 4,sockets=2,dies=2,cores=1,threads=1",
            "-m 3072M",
            "-object memory-backend-file,id=ram0,size=2048M,mem-path=/proc/self/fd/20,share=on",
            "-numa node,nodeid=0,memdev=ram0",
            "-numa cpu,node-id=0,socket-id=0",
            "-object memory-backend-file,id=ram1,size=1024M,mem-path=/proc/self/fd/21,share=on",
            "-numa node,nodeid=1,memdev=ram1",
            "-numa cpu,node-id=1,socket-id=1",
            "-kernel /k/vmlinuz",
        ];
        let mut rest = found.lines();
        for option in golden {
            assert!(rest.any(|line| line == option), "{option} in its place in\n{found}");
        }
        assert!(!found.contains("memory-backend=ram0"), "{found}");
    }
}
