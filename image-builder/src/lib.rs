//! Builds and checks magikvm guest images: a directory with `vmlinux`, `initramfs` and `manifest.json`.
//!
//! Owns: the kernel's options ([`options`]), how a kernel is compiled ([`compile`]) and kept ([`cache`]), what a kernel
//! must be ([`kernel`], [`mod@format`]), what the initramfs holds ([`cpio`], [`build`]), and the check of a finished image ([`image`]).
//! Must not know: pods, container images, hypervisors.
//!
//! [`build::build`] is the whole flow; read it first.

pub mod build;
pub mod cache;
pub mod child;
pub mod cli;
pub mod compile;
pub mod cpio;
pub mod elf;
pub mod files;
pub mod format;
pub mod ikconfig;
pub mod image;
pub mod kernel;
pub mod options;
pub mod paths;
pub mod progress;
pub mod stage;
pub mod tools;

#[cfg(test)]
mod craft;
