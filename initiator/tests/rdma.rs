//! NVMe/RDMA where there is nothing to do it with: every way in says what is missing. What it does with a device is tested in guests of the
//! lab.

use homi_initiator::{Error, Initiator, Uri};

const URI: &str = "nvme+rdma://127.0.0.1:4420/nqn.2024-01.org.example:disk1";

#[test]
fn what_is_missing_is_said() {
    let initiator = Initiator::new().unwrap();
    let uri: Uri = URI.parse().unwrap();
    let discovery: Uri = "nvme+rdma://127.0.0.1".parse().unwrap();
    let errors = [
        initiator.connect(&uri).unwrap_err(),
        initiator.open(&uri).unwrap_err(),
        initiator.discover(&discovery).unwrap_err(),
    ];
    for error in errors {
        let Error::Unsupported(text) = &error else {
            panic!("not said to be missing: {error}");
        };
        // With it, a library or a device is missing; a machine that has both reaches itself by no RDMA device.
        let expected: &[&str] = if cfg!(feature = "rdma") {
            &["RDMA device", "cannot be loaded", "rdma_ucm"]
        } else {
            &["built without the feature `rdma`"]
        };
        assert!(expected.iter().any(|part| text.contains(part)), "{text}");
        assert!(!text.contains('\n'));
    }
}
