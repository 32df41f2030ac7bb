//! libkrun's C interface with Rust's types. Features choose the library: the crate `libkrun` (feature `krun`), or the system's library
//! (feature `system-libkrun`).
#![allow(unsafe_code, reason = "libkrun's functions take pointers to C strings")]

use crate::vmm::Unavailable;

#[cfg(all(feature = "krun", feature = "system-libkrun"))]
compile_error!(
    "choose one: the feature `krun` compiles libkrun in, `system-libkrun` links the system's (--no-default-features)"
);

#[cfg(has_krun)]
pub(super) use bound::{ApiError, Context};

/// The version of the libkrun in this program, if there is one.
pub(super) fn version() -> Result<String, Unavailable> {
    if cfg!(feature = "system-libkrun") {
        Ok("libkrun, the system's".to_owned())
    } else if cfg!(has_krun) {
        Ok("libkrun 1.19, compiled in".to_owned())
    } else {
        Err(Unavailable {
            reason: "this magikvm was compiled without libkrun".to_owned(),
            remedy: "Run with `--vmm qemu`, or compile magikvm with the feature `krun` (the default on Linux for x86_64 and aarch64)."
                .to_owned(),
        })
    }
}

#[cfg(has_krun)]
mod bound {
    use crate::nested::Nested;
    use std::ffi::{CStr, CString};
    use std::path::Path;

    #[cfg(feature = "krun")]
    use krun as ffi;
    #[cfg(feature = "system-libkrun")]
    use krun_sys as ffi;

    /// Formats of `krun_set_kernel`.
    const KERNEL_FORMAT_RAW: u32 = 0;
    const KERNEL_FORMAT_ELF: u32 = 1;
    /// Formats of `krun_add_disk2`.
    const DISK_FORMAT_RAW: u32 = 0;
    const DISK_FORMAT_VMDK: u32 = 2;
    /// For `krun_add_disk3`: a flush by the guest flushes the file.
    const SYNC_FULL: u32 = 2;
    /// For `krun_add_virtiofs4`: owners and permissions are those of the host.
    const PERMISSIONS_COMPLETE: u32 = 0;
    /// For `krun_add_vsock`: sockets of IPv4 and IPv6 are made on the host.
    const TSI_INET: u32 = 1;
    /// For `krun_add_net_unixstream`: the guest accepts large TCP packets (checksums, TSO for IPv4, TSO for IPv6). No packet exceeds the MTU,
    /// but without these features the guest would have room for 1500 bytes only. Packets that the guest sends are complete.
    const NET_FEATURES: u32 = 1 << 1 | 1 << 7 | 1 << 8;

    /// libkrun refused a step.
    #[derive(Debug, thiserror::Error)]
    #[error("{call}: {}", std::io::Error::from_raw_os_error(*.errno))]
    pub(in crate::vmm::krun) struct ApiError {
        pub(in crate::vmm::krun) call: &'static str,
        /// The positive error number.
        pub(in crate::vmm::krun) errno: i32,
    }

    fn check(call: &'static str, answer: i32) -> Result<u32, ApiError> {
        u32::try_from(answer).map_err(|_| ApiError { call, errno: answer.saturating_neg() })
    }

    fn c_string(call: &'static str, text: &[u8]) -> Result<CString, ApiError> {
        CString::new(text).map_err(|_| ApiError { call, errno: nix::libc::EINVAL })
    }

    fn c_path(call: &'static str, path: &Path) -> Result<CString, ApiError> {
        use std::os::unix::ffi::OsStrExt;
        c_string(call, path.as_os_str().as_bytes())
    }

    /// A VM that is being configured.
    #[derive(Debug)]
    pub(in crate::vmm::krun) struct Context(u32);

    impl Context {
        pub(in crate::vmm::krun) fn new(vcpus: u8, memory_mib: u32) -> Result<Self, ApiError> {
            #[allow(unused_unsafe, reason = "safe in the crate, not in the bindings of the system's library")]
            // SAFETY: it takes nothing.
            let id = check("krun_create_ctx", unsafe { ffi::krun_create_ctx() })?;
            #[allow(unused_unsafe, reason = "as above")]
            // SAFETY: it takes numbers.
            check("krun_set_vm_config", unsafe { ffi::krun_set_vm_config(id, vcpus, memory_mib) })?;
            Ok(Self(id))
        }

        /// The processor's extension for VMs, which libkrun hides unless it is told otherwise.
        pub(in crate::vmm::krun) fn set_nested(&self, nested: Nested) -> Result<(), ApiError> {
            // SAFETY: it takes numbers.
            let answer = unsafe { ffi::krun_set_nested_virt(self.0, nested == Nested::Exposed) };
            check("krun_set_nested_virt", answer).map(drop)
        }

        /// An uncompressed kernel: an ELF file on x86-64, an `Image` on ARM.
        pub(in crate::vmm::krun) fn set_kernel(
            &self,
            kernel: &Path,
            initramfs: &Path,
            cmdline: &str,
        ) -> Result<(), ApiError> {
            let call = "krun_set_kernel";
            let format = if cfg!(target_arch = "x86_64") { KERNEL_FORMAT_ELF } else { KERNEL_FORMAT_RAW };
            let (kernel, initramfs) = (c_path(call, kernel)?, c_path(call, initramfs)?);
            let cmdline = c_string(call, cmdline.as_bytes())?;
            // SAFETY: the strings end in NUL and outlive the call.
            let answer = unsafe {
                ffi::krun_set_kernel(self.0, kernel.as_ptr(), format, initramfs.as_ptr(), cmdline.as_ptr())
            };
            check(call, answer).map(drop)
        }

        pub(in crate::vmm::krun) fn add_disk(&self, id: &CStr, descriptor: &str) -> Result<(), ApiError> {
            let call = "krun_add_disk2";
            let descriptor = c_string(call, descriptor.as_bytes())?;
            // SAFETY: the strings end in NUL and outlive the call.
            let answer = unsafe {
                ffi::krun_add_disk2(self.0, id.as_ptr(), descriptor.as_ptr(), DISK_FORMAT_VMDK, true)
            };
            check(call, answer).map(drop)
        }

        /// A writable raw disk, by the name of its file.
        pub(in crate::vmm::krun) fn add_writable(&self, file: &str) -> Result<(), ApiError> {
            let call = "krun_add_disk3";
            let file = c_string(call, file.as_bytes())?;
            // SAFETY: the strings end in NUL and outlive the call.
            let answer = unsafe {
                ffi::krun_add_disk3(
                    self.0,
                    file.as_ptr(),
                    file.as_ptr(),
                    DISK_FORMAT_RAW,
                    false,
                    false,
                    SYNC_FULL,
                )
            };
            check(call, answer).map(drop)
        }

        /// A directory that the guest can mount by this name.
        pub(in crate::vmm::krun) fn add_shared(&self, tag: &str, directory: &Path) -> Result<(), ApiError> {
            let call = "krun_add_virtiofs4";
            let (tag, directory) = (c_string(call, tag.as_bytes())?, c_path(call, directory)?);
            // SAFETY: the strings end in NUL and outlive the call.
            let answer = unsafe {
                ffi::krun_add_virtiofs4(
                    self.0,
                    tag.as_ptr(),
                    directory.as_ptr(),
                    0,
                    false,
                    PERMISSIONS_COMPLETE,
                )
            };
            check(call, answer).map(drop)
        }

        /// A network device whose frames go through a stream. libkrun takes the stream over.
        pub(in crate::vmm::krun) fn add_nic(&self, stream: i32, mac: [u8; 6]) -> Result<(), ApiError> {
            // The bindings of the system's library take a mutable pointer.
            let mut mac = mac;
            // SAFETY: no path is given; the address has 6 bytes and outlives the call; nothing else uses the descriptor from here on.
            let answer = unsafe {
                ffi::krun_add_net_unixstream(
                    self.0,
                    std::ptr::null(),
                    stream,
                    mac.as_mut_ptr(),
                    NET_FEATURES,
                    0,
                )
            };
            check("krun_add_net_unixstream", answer).map(drop)
        }

        /// A vsock device, with or without libkrun's networking ("TSI": the guest's sockets are made on the host), and ports of the guest that
        /// connections to Unix sockets lead to.
        pub(in crate::vmm::krun) fn add_vsock(
            &self,
            ports: &[(u32, &str)],
            tsi: bool,
        ) -> Result<(), ApiError> {
            let call = "krun_add_vsock_port2";
            #[allow(unused_unsafe, reason = "safe in the crate, not in the bindings of the system's library")]
            // SAFETY: they take numbers.
            let (no_default, added) = unsafe {
                let features = if tsi { TSI_INET } else { 0 };
                (ffi::krun_disable_implicit_vsock(self.0), ffi::krun_add_vsock(self.0, features))
            };
            check("krun_disable_implicit_vsock", no_default)?;
            check("krun_add_vsock", added)?;
            for (port, socket) in ports {
                let socket = c_string(call, socket.as_bytes())?;
                // SAFETY: the string ends in NUL and outlives the call.
                let answer = unsafe { ffi::krun_add_vsock_port2(self.0, *port, socket.as_ptr(), true) };
                check(call, answer)?;
            }
            Ok(())
        }

        /// A serial port that prints on a descriptor. libkrun takes the descriptor over.
        pub(in crate::vmm::krun) fn add_serial_console(&self, output: i32) -> Result<(), ApiError> {
            self.no_default_console()?;
            #[allow(unused_unsafe, reason = "unsafe in both, in different ways")]
            // SAFETY: it takes numbers; nothing else uses the descriptor from here on.
            let answer = unsafe { ffi::krun_add_serial_console_default(self.0, -1, output) };
            check("krun_add_serial_console_default", answer).map(drop)
        }

        /// A virtio console that prints on a descriptor.
        pub(in crate::vmm::krun) fn add_virtio_console(
            &self,
            input: i32,
            output: i32,
        ) -> Result<(), ApiError> {
            self.no_default_console()?;
            #[allow(unused_unsafe, reason = "unsafe in both, in different ways")]
            // SAFETY: it takes numbers.
            let answer = unsafe { ffi::krun_add_virtio_console_default(self.0, input, output, output) };
            check("krun_add_virtio_console_default", answer).map(drop)
        }

        fn no_default_console(&self) -> Result<(), ApiError> {
            #[allow(unused_unsafe, reason = "safe in the crate, not in the bindings of the system's library")]
            // SAFETY: it takes a number.
            let answer = unsafe { ffi::krun_disable_implicit_console(self.0) };
            check("krun_disable_implicit_console", answer).map(drop)
        }

        /// Runs the VM. Returns only if the VM could not be made.
        pub(in crate::vmm::krun) fn start_enter(self) -> ApiError {
            #[allow(unused_unsafe, reason = "safe in the crate, not in the bindings of the system's library")]
            // SAFETY: it takes a number.
            let answer = unsafe { ffi::krun_start_enter(self.0) };
            ApiError { call: "krun_start_enter", errno: answer.saturating_neg() }
        }
    }
}
