#![no_main]

use cryoscope_fuzz::cap::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

libfuzzer_sys::fuzz_target!(|data: &[u8]| cryoscope_fuzz::run("devices", data));
