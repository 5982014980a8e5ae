//! The devices, driven by bytes instead of a guest: what fuzzing needs of them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::devices::{Devices, Irq};
use super::pci::{ADDRESS, DATA, WINDOW};
use super::tables::{RESET, SERIAL, SLEEP_CONTROL};
use super::virtio::{Post, Virtio};
use crate::mem::{Gpa, GuestMem, MappedMem, Region};
use crate::vm::Console;

/// Accesses that one program makes at most.
const MOST: usize = 4096;
/// What the console keeps.
const KEPT: usize = 4096;
/// Memory that the virtio port finds its rings in.
const RAM: u64 = 1 << 20;
/// A program that begins with this finds the virtio port set up: one that is made at random would
/// hardly ever get as far as a ring.
const SET_UP: u8 = 0xa5;

/// Switches the port on and gives its queues rings at places that the program then scribbles over.
fn set_up(devices: &Devices) {
    let common = |offset: u64, value: u32, len: usize| {
        let at = u64::from(WINDOW.start) + offset;
        devices.write_memory(at, &value.to_le_bytes()[..len]);
    };
    devices.write(ADDRESS, &(1u32 << 31 | 1 << 11 | 0x40).to_le_bytes());
    devices.write(DATA + 3, &[0x80]);
    for half in [0u32, 1] {
        common(0x08, half, 4);
        common(0x0c, 2 - half, 4);
    }
    common(0x14, 11, 1);
    for queue in 0..4 {
        common(0x16, queue, 2);
        common(0x18, 8, 2);
        common(0x1a, queue, 2);
        for (ring, offset) in [(0, 0x20), (1, 0x28), (2, 0x30)] {
            common(offset, 0x1000 * queue + 0x400 * ring, 4);
        }
        common(0x1c, 1, 2);
    }
    common(0x14, 15, 1);
}

/// An address among the virtio port's registers.
fn at(place: u8, value: u8) -> u64 {
    u64::from(WINDOW.start) + (u64::from(place) << 8 & 0x3f00 | u64::from(value))
}

/// Puts something where rings may be: a byte, or a whole descriptor.
fn scribble(memory: &MappedMem, place: u8, value: u8) {
    let to = u64::from(place) << 6;
    let one = [value];
    let flags = u16::from(value & 7);
    let mut descriptor = [0; 16];
    descriptor[1] = place;
    descriptor[8..10].copy_from_slice(&(u16::from(value) << 4).to_le_bytes());
    descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
    descriptor[14] = value >> 4;
    let bytes: &[u8] = if value & 8 == 0 { &one } else { &descriptor };
    // Places beyond its memory are refused.
    let _ = memory.store(Gpa(to + u64::from(value & 3)), bytes);
}

/// Carries out a program of accesses to ports and memory, three bytes each: what to do, where, with
/// what. The host's end of the frames is written and read in between.
///
/// # Panics
/// When a device does what it must not: keeps more than it may, or ends the machine unasked.
pub fn exercise_devices(program: &[u8]) {
    let console = Console::new(KEPT);
    let irq = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Irq);
    let (Ok((ours, mut host)), Ok(first), Ok(second)) = (UnixStream::pair(), irq(), irq()) else {
        return;
    };
    let Ok(memory) = MappedMem::own(vec![Region { start: Gpa(0), len: RAM }]).map(Arc::new) else {
        return;
    };
    let virtio = Virtio::new(memory.clone(), Post { via: -1, send: Box::new(drop) });
    let Ok(devices) = Devices::new(console.clone(), ours, [first, second], virtio) else { return };
    let _ = host.set_nonblocking(true);
    if program.first() == Some(&SET_UP) {
        set_up(&devices);
    }
    for step in program.chunks_exact(3).take(MOST) {
        let &[what, place, value] = step else { continue };
        let port = match place {
            0..8 => SERIAL[0].0 + u16::from(place),
            8..16 => SERIAL[1].0 + u16::from(place - 8),
            16 => SLEEP_CONTROL,
            17 => SLEEP_CONTROL + 1,
            18 => RESET,
            20..28 => ADDRESS + u16::from(place - 20),
            _ => u16::from_le_bytes([value, place]),
        };
        match what % 12 {
            // The virtio port's registers, its bells more often than others.
            8 => devices.read_memory(at(place, value), &mut [0; 4]),
            9 => devices.write_memory(at(place, value), &[value; 4][..1 << (place % 3)]),
            10 => devices.write_memory(at(0x20, value % 4 * 4), &[0; 2]),
            11 => scribble(&memory, place, value),
            // One byte is what serial lines are about.
            0..3 => {
                let ending = devices.write(port, &[value]);
                let may = !(SERIAL.iter()).any(|(first, _)| (*first..first + 8).contains(&port));
                assert!(ending.is_none() || may, "a serial port ended the machine: {step:?}");
            }
            3 => {
                let wide = [value; 8];
                let len = 2 + usize::from(place % 3) * 2;
                assert_eq!(devices.write(port, &wide[..len]), None, "no register is that wide");
            }
            4 | 5 => devices.read(port, &mut [0]),
            6 => {
                let mut wide = [0; 8];
                devices.read(port, &mut wide[..2 + usize::from(place % 3) * 2]);
            }
            _ if value < 128 => drop(host.write(&vec![place; usize::from(value)])),
            _ => drop(host.read(&mut [0; 4096])),
        }
    }
    devices.end();
    let text = console.text();
    // A byte that is no text becomes a character of three.
    assert!(text.len() <= 2 * 3 * KEPT + 100, "{} bytes of the console are kept", text.len());
}

#[cfg(test)]
mod tests {
    #[test]
    fn devices_bear_whatever_they_are_told() {
        let mut state = 1u64;
        for _ in 0..50 {
            let program: Vec<u8> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .take(3000)
            .collect();
            // Most accesses go to registers that there are.
            let near = |(i, byte): (usize, &u8)| if i % 3 == 1 { byte % 30 } else { *byte };
            let mut near: Vec<u8> = program.iter().enumerate().map(near).collect();
            near[0] = super::SET_UP;
            super::exercise_devices(&near);
            super::exercise_devices(&program);
        }
    }
}
