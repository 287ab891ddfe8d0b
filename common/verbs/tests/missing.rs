//! What is missing is a typed error that says what to do, in every build and on every machine.
#![expect(clippy::panic, reason = "tests fail by panicking")]

use homi_verbs::{Device, EventChannel, Unsupported, VerbsError};

/// The error of opening something, unless this machine has what it takes.
fn judge<T>(opened: Result<T, VerbsError>) {
    match opened {
        Ok(_) if cfg!(feature = "rdma") && std::fs::read_dir("/sys/class/infiniband").is_ok() => {}
        Ok(_) => panic!("something was opened where there is nothing"),
        Err(VerbsError::Unsupported(missing)) => {
            assert_eq!(
                missing == Unsupported::NotBuilt,
                !cfg!(feature = "rdma"),
                "{missing}"
            );
            assert!(missing.to_string().contains(':'), "it says what to do: {missing}");
        }
        Err(other) => panic!("an untyped error: {other}"),
    }
}

#[test]
fn without_rdma_everything_says_what_is_missing() {
    judge(EventChannel::new());
    judge(Device::list());
    let error = Device::open("no-such-device").err().unwrap();
    assert!(matches!(error, VerbsError::Unsupported(_)), "{error}");
}

#[test]
fn the_objects_can_move_to_other_threads() {
    fn sendable<T: Send>() {}
    sendable::<EventChannel>();
    sendable::<Device>();
    sendable::<VerbsError>();
    #[cfg(feature = "rdma")]
    {
        sendable::<homi_verbs::Qp>();
        sendable::<homi_verbs::CompletionQueue>();
        sendable::<homi_verbs::SharedReceives>();
        sendable::<homi_verbs::MemoryRegion>();
        sendable::<homi_verbs::MemoryWindow>();
        sendable::<homi_verbs::Completions<16>>();
        sendable::<homi_verbs::ConnectRequest>();
    }
}
