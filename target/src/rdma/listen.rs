//! [`Listeners`]: the control thread's part of RDMA: it hears of hosts that want to connect, and of everything that happens to connections
//! later, and tells the shards.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use homi_fabric::controller::PortId;
use homi_fabric::rdma::cm::{self, Refusal};
use homi_reactor::{Reactor, SocketKey};
use homi_verbs::{CmEvent, CmEventKind, ConnectRequest, EventChannel, IdKey, VerbsError};
use zerocopy::IntoBytes;

use super::{Arrival, Letter};
use crate::config::Config;
use crate::shard::{Mailboxes, Message};

/// Requests that the kernel queues for a listener.
const BACKLOG: u32 = 1024;
/// The token of the channel's descriptor: no port has it.
const CHANNEL: u64 = 1 << 32;

/// A listener. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Listener {
    inner: homi_verbs::Listener,
}

impl Listener {
    pub(crate) fn close(self) {
        drop(self);
    }

    pub(crate) fn local_address(&self) -> Option<SocketAddr> {
        self.inner.local_address()
    }
}

/// Where the events of a connection go.
#[derive(Debug)]
struct Route {
    shard: usize,
    /// Gone when the connection is.
    alive: Weak<()>,
}

/// The connection manager, as long as anybody listens.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    channel: Option<(EventChannel, SocketKey)>,
    ports: HashMap<IdKey, PortId>,
    routes: HashMap<IdKey, Route>,
    /// Routes after the last look for those whose connection is gone.
    swept: usize,
}

impl Listeners {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Listens at an address, as a port of the node.
    pub(crate) fn listen(
        &mut self,
        reactor: &mut Reactor,
        address: SocketAddr,
        port: PortId,
    ) -> Result<Listener, VerbsError> {
        let channel = match &self.channel {
            Some((channel, _)) => channel,
            None => {
                let channel = EventChannel::new()?;
                let watched = reactor
                    .add_watched(channel.descriptor(), CHANNEL)
                    .map_err(|source| VerbsError::System {
                        action: "watch the connection manager",
                        source,
                    })?;
                reactor.watch(watched);
                &self.channel.insert((channel, watched)).0
            }
        };
        let inner = channel.listen(address, BACKLOG)?;
        self.ports.insert(inner.key(), port);
        Ok(Listener { inner })
    }

    /// Takes what has happened, and asks to be woken for more. Returns the ports whose device is gone: their listeners are to be dropped.
    pub(crate) fn turn(
        &mut self,
        reactor: &mut Reactor,
        config: &Config,
        mailboxes: &Mailboxes,
    ) -> Vec<PortId> {
        let mut gone = Vec::new();
        let Some((channel, watched)) = &mut self.channel else {
            return gone;
        };
        reactor.watch(*watched);
        loop {
            let CmEvent { id, kind } = match channel.next_event() {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(error) => {
                    tracing::error!("{error}");
                    break;
                }
            };
            match kind {
                CmEventKind::ConnectRequest(request) => {
                    let Some(&port) = self.ports.get(&id) else {
                        continue;
                    };
                    request_came(request, port, config, mailboxes, &mut self.routes);
                }
                CmEventKind::DeviceRemoval if self.ports.contains_key(&id) => {
                    gone.extend(self.ports.remove(&id));
                }
                kind => {
                    if let Some(route) = self.routes.get(&id) {
                        mailboxes.post(route.shard, Message::Rdma(Letter::Event(id, kind)));
                    }
                }
            }
        }
        if self.routes.len() > 2 * self.swept + 64 {
            self.routes.retain(|_, route| route.alive.strong_count() > 0);
            self.swept = self.routes.len();
        }
        gone
    }
}

/// Gives a connection to the shard that has the fewest.
fn request_came(
    request: ConnectRequest,
    port: PortId,
    config: &Config,
    mailboxes: &Mailboxes,
    routes: &mut HashMap<IdKey, Route>,
) {
    let (Some(peer), Some(local)) = (request.peer_address(), request.local_address()) else {
        return;
    };
    let refuse = |request: ConnectRequest, refusal: &Refusal, reason: &str| {
        tracing::warn!(%peer, "connection refused: {reason}");
        if let Err(error) = request.reject(refusal.to_private_data().as_bytes()) {
            tracing::debug!(%peer, "the host is not told: {error}");
        }
    };
    let asked = match cm::ConnectRequest::parse(&request.peer().private_data) {
        Ok(asked) => asked,
        Err(refusal) => return refuse(request, &refusal, &refusal.to_string()),
    };
    let Some(shard) = mailboxes.choose(config.limits.connections) else {
        let reason = "there are as many connections as there may be (limits.connections)";
        return refuse(request, &Refusal::Resources, reason);
    };
    let alive = Arc::new(());
    routes.insert(
        request.key(),
        Route {
            shard,
            alive: Arc::downgrade(&alive),
        },
    );
    mailboxes.post(
        shard,
        Message::Rdma(Letter::Arrival(Box::new(Arrival {
            request,
            asked,
            peer: peer.to_string().into(),
            port,
            local: local.ip(),
            route: alive,
        }))),
    );
}
