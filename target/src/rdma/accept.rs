//! A request to connect becomes a queue pair, or is refused with a reason that reaches the host.

use homi_fabric::rdma::ControllerParams;
use homi_fabric::rdma::cm::{Granted, Refusal};
use homi_verbs::{ConnectOptions, ConnectRequest, Qp, QpOptions, Refused};
use zerocopy::IntoBytes;

use super::adapter::Adapter;

/// The longest send queue. Beyond it responses wait for others to be sent.
const MOST_SENDS: u32 = 1024;

/// Makes a queue pair and accepts the connection on it.
pub(super) fn make(
    adapter: &mut Adapter,
    request: ConnectRequest,
    granted: &Granted,
    in_capsule: u32,
) -> Result<(Qp, ControllerParams, Vec<u32>), String> {
    let limits = adapter.device.limits();
    let entries = u32::from(granted.entries);
    let sends = (2 * entries).min(MOST_SENDS).min(limits.work_requests);
    let params = ControllerParams {
        max_in_capsule: in_capsule,
        max_descriptors: 1,
        max_depth: granted.entries,
        send_queue: u16::try_from(sends).unwrap_or(u16::MAX),
        read_depth: granted.read_depth,
        // Buffers are in one piece.
        max_pieces: 2,
        max_read_pieces: 1,
        invalidate: limits.invalidate,
        signal_data: !limits.silent_is_done,
    };
    let options = QpOptions {
        sends,
        send_pieces: 2,
        inline: 16,
        receives: entries,
        receive_pieces: adapter.pieces(),
    };
    let made = request.create_qp(&adapter.pd, &adapter.sent.cq, adapter.shared.as_ref(), &options);
    let mut accepting = match made {
        Ok(accepting) => accepting,
        Err(Refused { object, error }) => return refuse(object, &Refusal::Resources, &error),
    };
    let mut free = Vec::new();
    if adapter.shared.is_some() {
        adapter.post_shared();
    } else {
        let at = adapter.free.len().saturating_sub(entries as usize);
        free = adapter.free.split_off(at);
        adapter.post_own(accepting.receives(), &mut free);
    }
    let private_data = granted.to_private_data();
    let accepted = accepting.accept(&ConnectOptions {
        private_data: private_data.as_bytes(),
        responder_resources: 0,
        initiator_depth: granted.read_depth,
        ..ConnectOptions::default()
    });
    match accepted {
        Ok(qp) => Ok((qp, params, free)),
        // The peer has given up. Its queue pair goes with it.
        Err(Refused { error, .. }) => Err(error.to_string()),
    }
}

/// Tells the host why it cannot connect.
pub(super) fn refuse<T>(
    request: ConnectRequest,
    refusal: &Refusal,
    reason: &dyn std::fmt::Display,
) -> Result<T, String> {
    match request.reject(refusal.to_private_data().as_bytes()) {
        Ok(()) => Err(reason.to_string()),
        Err(error) => Err(format!("{reason} (the host is not told: {error})")),
    }
}
