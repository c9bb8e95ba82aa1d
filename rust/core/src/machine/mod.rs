//! The one place with `unsafe`: what the processor and the system have that safe Rust does not reach.
//!
//! Vector instructions are chosen at run time, and no choice changes a bit of a result. Memory is asked for in large
//! pages, or in pages of a file. Every block says why it is sound, and what is outside sees slices only.
#![allow(unsafe_code)]

pub(crate) mod pages;
pub(crate) mod rows;
#[cfg(target_arch = "x86_64")]
mod rows_x86;
pub(crate) mod search;
#[cfg(target_arch = "aarch64")]
mod search_arm;
#[cfg(target_arch = "x86_64")]
mod search_x86;
