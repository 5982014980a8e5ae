//! Kernel images: find, fetch, unpack, cache.

pub mod cache;

pub use cache::{CacheDir, CacheError, CacheLock};
