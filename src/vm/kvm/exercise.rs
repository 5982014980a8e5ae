//! The devices, driven by bytes instead of a guest: what fuzzing needs of them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vmm_sys_util::eventfd::EventFd;

use super::devices::{Devices, Irq};
use super::tables::{RESET, SERIAL, SLEEP_CONTROL};
use crate::vm::Console;

/// Accesses that one program makes at most.
const MOST: usize = 4096;
/// What the console keeps.
const KEPT: usize = 4096;

/// Carries out a program of accesses to ports, three bytes each: what to do, where, with what. The
/// host's end of the frames is written and read in between.
///
/// # Panics
/// When a device does what it must not: keeps more than it may, or ends the machine unasked.
pub fn exercise_devices(program: &[u8]) {
    let console = Console::new(KEPT);
    let irq = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Irq);
    let (Ok((ours, mut host)), Ok(first), Ok(second)) = (UnixStream::pair(), irq(), irq()) else {
        return;
    };
    let Ok(devices) = Devices::new(console.clone(), ours, [first, second]) else { return };
    let _ = host.set_nonblocking(true);
    for step in program.chunks_exact(3).take(MOST) {
        let &[what, place, value] = step else { continue };
        let port = match place {
            0..8 => SERIAL[0].0 + u16::from(place),
            8..16 => SERIAL[1].0 + u16::from(place - 8),
            16 => SLEEP_CONTROL,
            17 => SLEEP_CONTROL + 1,
            18 => RESET,
            _ => u16::from_le_bytes([value, place]),
        };
        match what % 8 {
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
            let near = |(i, byte): (usize, &u8)| if i % 3 == 1 { byte % 20 } else { *byte };
            super::exercise_devices(&program.iter().enumerate().map(near).collect::<Vec<_>>());
            super::exercise_devices(&program);
        }
    }
}
