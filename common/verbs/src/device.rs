//! [`Device`]: an RDMA device that is open, and what it can do.
#![expect(unsafe_code, reason = "calls libibverbs and librdmacm")]

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;

use rdma_sys::{
    ibv_context, ibv_device_attr, ibv_device_cap_flags, ibv_free_device_list, ibv_get_device_list,
    ibv_get_device_name, ibv_query_device, ibv_wc_flags, rdma_free_devices, rdma_get_devices,
};

use crate::error::{Unsupported, VerbsError};
use crate::types::{Limits, Windows};

/// The vendor that Linux's RDMA over Ethernet in software claims to be.
const RXE_VENDOR: u32 = 0x00ff_ffff;
/// Its driver hands the kernel's own flags to user space, where this bit means something else that reliable connections never have.
const RXE_WITH_INVALIDATE: u32 = 1 << 2;

/// The vendor that Linux's iWARP in software claims to be. Its library in user space knows no SEND with invalidate, though its driver does.
const SIW_VENDOR: u32 = 0x0062_6d74;

/// The error that a call has just left in `errno`.
pub(crate) fn system(action: &'static str) -> VerbsError {
    VerbsError::System {
        action,
        source: io::Error::last_os_error(),
    }
}

/// The error of a call that returns an errno, or -1 with an errno left behind.
pub(crate) fn errno(code: i32) -> io::Error {
    if code < 0 {
        io::Error::last_os_error()
    } else {
        io::Error::from_raw_os_error(code)
    }
}

/// Checks the result of such a call.
pub(crate) fn check(code: i32, action: &'static str) -> Result<(), VerbsError> {
    if code == 0 {
        return Ok(());
    }
    Err(VerbsError::System {
        action,
        source: errno(code),
    })
}

/// Whether the system says that something does not exist rather than that it failed.
pub(crate) fn is_unsupported(source: &io::Error) -> bool {
    matches!(
        source.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EPROTONOSUPPORT)
    )
}

/// Both libraries can be used.
///
/// # Errors
/// The one that is missing. Without this, calls would only say that they are not supported.
pub(crate) fn libraries() -> Result<(), Unsupported> {
    for (name, library, package) in [
        (
            c"libibverbs.so.1",
            "libibverbs.so.1",
            "libibverbs1 ibverbs-providers",
        ),
        (c"librdmacm.so.1", "librdmacm.so.1", "librdmacm1"),
    ] {
        // SAFETY: the name is a C string; with `RTLD_NOLOAD` nothing is loaded or run.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
        if handle.is_null() {
            return Err(Unsupported::Library { library, package });
        }
        // SAFETY: gives back the reference just taken; the library stays, for the bindings have loaded it for good.
        unsafe { libc::dlclose(handle) };
    }
    Ok(())
}

/// How many devices libibverbs sees.
pub(crate) fn count() -> i32 {
    let mut count = 0;
    // SAFETY: the count is a valid place for the result.
    let list = unsafe { ibv_get_device_list(&raw mut count) };
    if list.is_null() {
        return 0;
    }
    // SAFETY: the list came from the call above and is not used any more.
    unsafe { ibv_free_device_list(list) };
    count
}

/// The connection manager's list of open devices. It keeps each of them open.
struct OpenDevices {
    first: NonNull<*mut ibv_context>,
    len: usize,
}

impl OpenDevices {
    fn get() -> Result<Self, VerbsError> {
        libraries()?;
        // The connection manager complains on standard error where there are none.
        if count() == 0 {
            return Err(Unsupported::NoDevice.into());
        }
        let mut len = 0;
        // SAFETY: the length is a valid place for the result.
        let list = unsafe { rdma_get_devices(&raw mut len) };
        let Some(first) = NonNull::new(list) else {
            let source = io::Error::last_os_error();
            return Err(match source.raw_os_error() {
                Some(libc::ENODEV) => Unsupported::NoDevice.into(),
                Some(libc::ENOENT | libc::ENOSYS | libc::EACCES | libc::EPERM) => {
                    Unsupported::ConnectionManager {
                        reason: source.to_string(),
                    }
                    .into()
                }
                _ => VerbsError::System {
                    action: "list RDMA devices",
                    source,
                },
            });
        };
        Ok(Self {
            first,
            len: usize::try_from(len).unwrap_or(0),
        })
    }

    fn contexts(&self) -> &[*mut ibv_context] {
        // SAFETY: the library returned an array of this many pointers, which lives until it is freed in `drop`.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl Drop for OpenDevices {
    fn drop(&mut self) {
        // SAFETY: the list came from `rdma_get_devices` and is freed only here.
        unsafe { rdma_free_devices(self.first.as_ptr()) };
    }
}

struct Inner {
    context: NonNull<ibv_context>,
    name: String,
    limits: Limits,
    invalidated_flag: u32,
    /// Keeps the context open.
    _open: OpenDevices,
}

// SAFETY: libibverbs' contexts may be used by any thread, several at once; the list is only freed.
unsafe impl Send for Inner {}
// SAFETY: as above; nothing here is changed after its construction.
unsafe impl Sync for Inner {}

/// An RDMA device, open as the connection manager has it: its ids and the objects made here are of one device.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

impl Device {
    /// The RDMA devices of this machine; at least one.
    ///
    /// # Errors
    /// [`VerbsError::Unsupported`] with what is missing.
    pub fn list() -> Result<Vec<Self>, VerbsError> {
        let contexts = OpenDevices::get()?.contexts().to_vec();
        let devices: Vec<Self> = contexts
            .into_iter()
            .filter_map(|context| Self::of_context(context).ok().flatten())
            .collect();
        if devices.is_empty() {
            return Err(Unsupported::NoDevice.into());
        }
        Ok(devices)
    }

    /// The device of this name, such as `mlx5_0`.
    ///
    /// # Errors
    /// [`VerbsError::Unsupported`] with what is missing, for example [`Unsupported::NoSuchDevice`].
    pub fn open(name: &str) -> Result<Self, VerbsError> {
        let mut devices = Self::list()?;
        match devices.iter().position(|device| device.name() == name) {
            Some(index) => Ok(devices.swap_remove(index)),
            None => {
                let names: Vec<&str> = devices.iter().map(Self::name).collect();
                Err(Unsupported::NoSuchDevice {
                    wanted: name.to_owned(),
                    present: names.join(", "),
                }
                .into())
            }
        }
    }

    /// The device that has this context, or `None` if it is gone.
    pub(crate) fn of_context(context: *mut ibv_context) -> Result<Option<Self>, VerbsError> {
        let open = OpenDevices::get()?;
        let Some(found) = open.contexts().iter().find(|one| **one == context) else {
            return Ok(None);
        };
        let Some(context) = NonNull::new(*found) else {
            return Ok(None);
        };
        let name = name_of(context);
        let raw = attributes_of(context)?;
        // SAFETY: the context is open, kept so by the list.
        let vectors = unsafe { (*context.as_ptr()).num_comp_vectors };
        Ok(Some(Self(Arc::new(Inner {
            context,
            name,
            limits: limits_of(&raw, vectors),
            invalidated_flag: if raw.vendor_id == RXE_VENDOR {
                RXE_WITH_INVALIDATE
            } else {
                ibv_wc_flags::IBV_WC_WITH_INV.0
            },
            _open: open,
        }))))
    }

    /// Its name, such as `mlx5_0`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it can do.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Whether both are the same device, opened once.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.0.context == other.0.context
    }

    pub(crate) fn context(&self) -> *mut ibv_context {
        self.0.context.as_ptr()
    }

    /// The flag of completions which says that the peer has invalidated a key.
    pub(crate) fn invalidated_flag(&self) -> u32 {
        self.0.invalidated_flag
    }

    /// Checks that an object of `other` may be used with one of this device.
    pub(crate) fn expect(&self, what: &'static str, other: &Self) -> Result<(), VerbsError> {
        if self.is(other) {
            return Ok(());
        }
        Err(VerbsError::DeviceMismatch {
            what,
            theirs: other.name().to_owned(),
            ours: self.name().to_owned(),
        })
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

fn name_of(context: NonNull<ibv_context>) -> String {
    let context = context.as_ptr();
    // SAFETY: the context is open, kept so by the caller's list.
    let device = unsafe { (*context).device };
    // SAFETY: the device of an open context exists as long as it.
    let name = unsafe { ibv_get_device_name(device) };
    if name.is_null() {
        return "unnamed".to_owned();
    }
    // SAFETY: libibverbs returns a C string that lives as long as the device, and it is copied here.
    let name = unsafe { CStr::from_ptr(name) };
    name.to_string_lossy().into_owned()
}

fn attributes_of(context: NonNull<ibv_context>) -> Result<Box<ibv_device_attr>, VerbsError> {
    let mut raw: Box<ibv_device_attr> = {
        // SAFETY: the structure is plain data, for which zeros are a value.
        Box::new(unsafe { std::mem::zeroed() })
    };
    // SAFETY: the context is open, and the structure is of the type that the call fills.
    let code = unsafe { ibv_query_device(context.as_ptr(), ptr::from_mut(&mut *raw)) };
    check(code, "query an RDMA device")?;
    Ok(raw)
}

fn limits_of(raw: &ibv_device_attr, vectors: i32) -> Limits {
    let count = |value: i32| u32::try_from(value).unwrap_or(0);
    let depth = |value: i32| u8::try_from(value.clamp(0, 255)).unwrap_or(u8::MAX);
    let has = |flag: ibv_device_cap_flags| raw.device_cap_flags & flag.0 != 0;
    Limits {
        work_requests: count(raw.max_qp_wr),
        pieces: count(raw.max_sge),
        read_pieces: count(raw.max_sge_rd),
        completions: count(raw.max_cqe),
        registration_bytes: raw.max_mr_size,
        registrations: count(raw.max_mr),
        shared_receive_queues: count(raw.max_srq),
        shared_receive_work_requests: count(raw.max_srq_wr),
        shared_receive_pieces: count(raw.max_srq_sge),
        initiator_depth: depth(raw.max_qp_init_rd_atom),
        responder_resources: depth(raw.max_qp_rd_atom),
        windows: if has(ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2B) {
            Windows::Type2B
        } else if has(ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2A) {
            Windows::Type2A
        } else {
            Windows::None
        },
        invalidate: raw.vendor_id != SIW_VENDOR && has(ibv_device_cap_flags::IBV_DEVICE_MEM_MGT_EXTENSIONS),
        silent_is_done: raw.vendor_id != SIW_VENDOR,
        completion_vectors: count(vectors).max(1),
    }
}
