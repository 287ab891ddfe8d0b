//! What Linux's target (nvmet) says about itself, compared with what its configuration says: the discovery log with referrals, identify
//! pages and descriptors, who may connect, and the same through `homi`.

use std::time::{Duration, Instant};

use fabric_tests::ensure;
use fabric_tests::lab::{Failure, Kernels, Lab, Test, Vm, check_refusal};
use fabric_tests::random::contents;
use homi_initiator::{
    AddressFamily, Command, Data, DiscoveryRecord, Error, QueueOptions, SubsystemKind, TransportKind, Uri,
};
use homi_spec::Sqe;
use homi_spec::command::AdminOpcode;
use serde_json::Value;

use crate::linux_target_io::{NQN, TEST, compare_disk, namespace_uri, patient};

const OTHER: &str = "nqn.2026-01.org.example:other";
const HIDDEN: &str = "nqn.2026-01.org.example:hidden";
const HOST: &str = "nqn.2026-01.org.example:host";
const DISCOVERY: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// The tests of this file.
pub const TESTS: &[Test] = &[
    Test {
        name: "discovery_records_and_referrals",
        feature: "discovery log, referrals, IPv6",
        run: records_and_referrals,
        ..TEST
    },
    Test {
        name: "identify_says_what_is_configured",
        feature: "identify controller and namespaces, descriptors",
        run: identify,
        ..TEST
    },
    Test {
        name: "hosts_that_are_not_allowed",
        kernels: Kernels::Default,
        feature: "allow list",
        run: allow_list,
        ..TEST
    },
    Test {
        name: "homi_from_the_command_line",
        kernels: Kernels::Default,
        feature: "homi discover, list, identify, read, write, copy",
        limit: Duration::from_secs(180),
        run: command_line,
        ..TEST
    },
];

fn records_and_referrals(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    let second = guest.forward(4430)?;
    guest.sh(&format!(
        "disk=$(null_disk 16 512)
         for nqn in {NQN} {OTHER} {HIDDEN}; do nvmet_subsystem $nqn; done
         nvmet_namespace {NQN} 1 $disk
         echo 0 >$NVMET/subsystems/{HIDDEN}/attr_allow_any_host
         nvmet_port 1 tcp 0.0.0.0 4420 {NQN} {HIDDEN}
         nvmet_port 77 tcp 10.0.2.15 4430
         echo required >$NVMET/ports/77/addr_treq
         nvmet_offer 77 {OTHER}
         nvmet_port 3 tcp ::1 4440 {NQN}
         referral=$NVMET/ports/1/referrals/second
         mkdir $referral
         echo tcp >$referral/addr_trtype; echo ipv4 >$referral/addr_adrfam
         echo {} >$referral/addr_traddr; echo {} >$referral/addr_trsvcid
         echo 1 >$referral/enable",
        second.ip(),
        second.port()
    ))?;
    let initiator = patient().host_nqn(HOST).build()?;
    let address = guest.forward(4420)?;
    let records = initiator.discover(&format!("nvme+tcp://{address}").parse()?)?;
    let find = |kind: SubsystemKind, service: &str| -> Result<&DiscoveryRecord, Failure> {
        let mut found = records
            .iter()
            .filter(|record| record.kind == kind && record.service == service);
        match (found.next(), found.next()) {
            (Some(record), None) => Ok(record),
            _ => Err(Failure::new(format!(
                "not one {kind:?} at port {service}: {records:?}"
            ))),
        }
    };
    for (service, nqn, port_id, secure) in [("4420", NQN, 1, false), ("4430", OTHER, 77, true)] {
        let record = find(SubsystemKind::Nvm, service)?;
        ensure!(
            record.transport == TransportKind::Tcp
                && record.family == AddressFamily::Ipv4
                && record.subsystem.as_str() == nqn
                && record.address == "10.0.2.15"
                && record.port_id == port_id
                && record.controller_id == 0xffff
                && record.admin_queue_entries >= 32
                && record.secure_required == secure,
            "{nqn} at port {service} is described as {record:?}"
        );
    }
    let referral = find(SubsystemKind::Referral, &second.port().to_string())?;
    ensure!(
        referral.address == second.ip().to_string() && referral.subsystem.as_str() == DISCOVERY,
        "the referral is {referral:?}"
    );
    ensure!(
        records.iter().all(|record| record.subsystem.as_str() != HIDDEN),
        "a subsystem that this host may not use is in the log: {records:?}"
    );
    guest.sh(&format!(
        "mkdir $NVMET/hosts/{HOST}; ln -s $NVMET/hosts/{HOST} $NVMET/subsystems/{HIDDEN}/allowed_hosts/"
    ))?;
    let records = initiator.discover(&format!("nvme+tcp://{address}").parse()?)?;
    ensure!(
        records.iter().any(|record| record.subsystem.as_str() == HIDDEN),
        "a subsystem that this host may use is not in the log: {records:?}"
    );

    let log = guest
        .sh("homi discover --connect-timeout 30s --json 'nvme+tcp://[::1]:4440'")?
        .json()?;
    let record = records_of(&log).find(|record| record["kind"] == "nvm");
    ensure!(
        record.is_some_and(|record| record["family"] == "ipv6"
            && record["address"] == "::1"
            && record["port"] == "4440"
            && record["subsystem"] == NQN
            && record["uri"] == format!("nvme+tcp://[::1]:4440/{NQN}")),
        "over IPv6 the log is {log}"
    );
    guest.sh(&format!(
        "homi read --connect-timeout 30s --json --count 4096 'nvme+tcp://[::1]:4440/{NQN}'"
    ))?;
    Ok(())
}

fn records_of(log: &Value) -> impl Iterator<Item = &Value> {
    log["records"].as_array().into_iter().flatten()
}

/// Attributes of the target's configuration in a guest, as `name=value` lines would have them.
fn attribute(guest: &Vm, path: &str) -> Result<String, Failure> {
    Ok(guest.sh(&format!("cat $NVMET/{path}"))?.stdout.trim().to_owned())
}

const UUID: &str = "5d7c0a1e-6a0b-4f2c-9a43-0123456789ab";
const NGUID: &str = "01020304-0506-0708-090a-0b0c0d0e0f10";

fn identify(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh(&format!(
        "nvmet_subsystem {NQN}
         cd $NVMET/subsystems/{NQN}
         echo 'A model of ours' >attr_model
         echo 0123456789abcdef >attr_serial
         echo 100 >attr_cntlid_min; echo 109 >attr_cntlid_max
         echo 3 >attr_qid_max
         small=$(null_disk 16 512); large=$(null_disk 40 4096)
         nvmet_namespace {NQN} 7 $large
         mkdir namespaces/1
         printf %s $small >namespaces/1/device_path
         echo {UUID} >namespaces/1/device_uuid
         echo {NGUID} >namespaces/1/device_nguid
         echo 1 >namespaces/1/enable
         nvmet_namespace {NQN} 4242 $(null_disk 8 512)
         mkdir namespaces/9
         nvmet_port 1 tcp 0.0.0.0 4420 {NQN}"
    ))?;
    let subsystem = format!("subsystems/{NQN}");
    let address = guest.forward(4420)?;
    let initiator = patient().io_queues(16).build()?;
    let controller = initiator.connect(&format!("nvme+tcp://{address}/{NQN}").parse::<Uri>()?)?;
    let info = controller.info();
    let version = attribute(guest, &format!("{subsystem}/attr_version"))?;
    let firmware = attribute(guest, &format!("{subsystem}/attr_firmware"))?;
    ensure!(
        info.model == "A model of ours"
            && info.serial == "0123456789abcdef"
            && info.firmware == firmware
            && info.subsystem_nqn.as_str() == NQN
            && (100..=109).contains(&info.controller_id),
        "not what is configured: {info:?}"
    );
    // Linux writes 1.3, the specification 1.3.0.
    ensure!(
        info.version.to_string().starts_with(&version),
        "version {} instead of {version}",
        info.version
    );
    ensure!(
        info.io_queues == 3,
        "{} queues granted where there are 3",
        info.io_queues
    );
    let queues = [1, 2, 3]
        .map(|_| controller.queue(QueueOptions::depth(8)))
        .into_iter()
        .collect::<Result<Vec<_>, Error>>()?;
    let fourth = controller.queue(QueueOptions::depth(8));
    ensure!(
        matches!(&fourth, Err(Error::Unsupported(sentence)) if sentence.contains("all 3 i/o queues")),
        "a fourth queue of three: {fourth:?}"
    );
    drop(queues);

    // Linux's disks of a namespace must be writable; a host says that they are not to be written.
    let mut protect = Sqe::new(AdminOpcode::SET_FEATURES.raw(), 4242);
    protect.cdw10 = 0x84.into();
    protect.cdw11 = 1.into();
    let reply = controller.admin(Command(protect), Data::None)?;
    ensure!(
        reply.completion.is_success(),
        "write protection is refused: {}",
        reply.completion.status
    );
    let namespaces = controller.namespaces()?;
    let ids: Vec<u32> = namespaces.iter().map(|namespace| namespace.nsid).collect();
    ensure!(ids == [1, 7, 4242], "namespaces {ids:?} instead of 1, 7 and 4242");
    for (namespace, (block_size, mib, read_only)) in
        namespaces
            .iter()
            .zip([(512, 16, false), (4096, 40, false), (512, 8, true)])
    {
        ensure!(
            namespace.block_size == block_size
                && namespace.bytes() == mib << 20
                && namespace.read_only == read_only
                && namespace.metadata_size == 0,
            "not {mib} MiB in blocks of {block_size}, read-only {read_only}: {namespace:?}"
        );
        let folder = format!("{subsystem}/namespaces/{}", namespace.nsid);
        let uuid = attribute(guest, &format!("{folder}/device_uuid"))?.replace('-', "");
        let nguid = attribute(guest, &format!("{folder}/device_nguid"))?.replace('-', "");
        let hex = |id: Option<[u8; 16]>| {
            id.unwrap_or_default()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
        };
        ensure!(
            hex(namespace.uuid) == uuid && hex(namespace.nguid) == nguid,
            "the descriptors of {namespace:?} should be {uuid} and {nguid}"
        );
    }
    ensure!(
        namespaces
            .first()
            .is_some_and(|first| first.uuid.is_some() && first.nguid.is_some()),
        "no identifiers: {namespaces:?}"
    );
    let missing = controller.namespace(2);
    ensure!(
        matches!(&missing, Err(Error::NoNamespace { available, .. }) if available == &[1, 7, 4242]),
        "namespace 2, which is not there: {missing:?}"
    );
    let file = lab.scratch().join("block");
    std::fs::write(&file, contents(1, 512))?;
    let write = lab.homi(&[
        "write",
        &namespace_uri(address, 4242)?.to_string(),
        "--input",
        &file.display().to_string(),
        "--connect-timeout",
        "30s",
    ])?;
    let sentence = check_refusal(&write, 1)?;
    ensure!(
        sentence.contains("write failed: ") && sentence.contains("write protected"),
        "a write to a namespace that may only be read says: {sentence}"
    );

    // The same through the program.
    let told = guest
        .sh(&format!(
            "homi list --connect-timeout 30s --json nvme+tcp://127.0.0.1:4420/{NQN}"
        ))?
        .json()?;
    let list = &told["controllers"][0];
    ensure!(
        list["model"] == "A model of ours"
            && list["serial"] == "0123456789abcdef"
            && list["firmware"] == firmware.as_str()
            && list["namespaces"][0]["uuid"] == UUID
            && list["namespaces"][0]["nguid"] == NGUID.replace('-', "")
            && list["namespaces"][1]["block_size"] == 4096
            && list["namespaces"][2]["nsid"] == 4242
            && list["namespaces"][2]["read_only"] == true,
        "homi list says {told}"
    );
    Ok(())
}

fn allow_list(lab: &Lab) -> Result<(), Failure> {
    let guest = lab.guest(0)?;
    guest.sh(&format!(
        "nvmet_subsystem {NQN}
         nvmet_namespace {NQN} 1 $(null_disk 16 512)
         echo 0 >$NVMET/subsystems/{NQN}/attr_allow_any_host
         nvmet_port 1 tcp 0.0.0.0 4420 {NQN}"
    ))?;
    let address = guest.forward(4420)?;
    let uri = namespace_uri(address, 1)?;
    let initiator = patient().host_nqn(HOST).build()?;
    let refused = initiator.open(&uri);
    ensure!(
        matches!(&refused, Err(Error::HostNotAllowed { nqn, host_nqn, .. }) if nqn == NQN && host_nqn == HOST),
        "a host that is not allowed gets {refused:?}"
    );
    let place = uri.to_string();
    let start = Instant::now();
    let program = lab.homi(&["read", &place, "--host-nqn", HOST, "--json"])?;
    let sentence = check_refusal(&program, 1)?;
    ensure!(
        sentence.contains(HOST) && sentence.contains(NQN) && sentence.contains("allow list"),
        "the sentence does not say what to change: {sentence}"
    );
    ensure!(
        program.json()?["error"] == sentence,
        "the JSON says {}",
        program.stdout
    );
    ensure!(
        start.elapsed() < Duration::from_secs(30),
        "a refusal takes {:?}",
        start.elapsed()
    );
    let unknown = initiator.open(&format!("nvme+tcp://{address}/{OTHER}?nsid=1").parse()?);
    ensure!(
        matches!(&unknown, Err(Error::UnknownSubsystem { nqn, .. }) if nqn == OTHER),
        "a subsystem that is not there: {unknown:?}"
    );
    guest.sh(&format!(
        "mkdir $NVMET/hosts/{HOST}; ln -s $NVMET/hosts/{HOST} $NVMET/subsystems/{NQN}/allowed_hosts/"
    ))?;
    initiator.open(&uri)?;
    let other = patient().host_nqn("nqn.2026-01.org.example:another").build()?;
    let refused = other.open(&uri);
    ensure!(
        matches!(refused, Err(Error::HostNotAllowed { .. })),
        "another host gets {refused:?}"
    );
    guest.sh(&format!("rm $NVMET/subsystems/{NQN}/allowed_hosts/{HOST}"))?;
    let again = initiator.open(&uri);
    ensure!(
        matches!(again, Err(Error::HostNotAllowed { .. })),
        "a host that is not allowed any more gets {again:?}"
    );
    Ok(())
}

fn command_line(lab: &Lab) -> Result<(), Failure> {
    const SIZE: usize = 2 << 20;
    let guest = lab.guest(0)?;
    guest.sh(&format!(
        "nvmet_subsystem {NQN}
         nvmet_namespace {NQN} 1 $(null_disk 4 512)
         nvmet_namespace {NQN} 2 $(null_disk 4 4096)
         nvmet_port 1 tcp 0.0.0.0 4420 {NQN}"
    ))?;
    let address = guest.forward(4420)?;
    let [first, second] = [1, 2].map(|nsid| format!("nvme+tcp://{address}/{NQN}?nsid={nsid}"));
    let homi = |arguments: &[&str]| -> Result<Value, Failure> {
        let mut all = arguments.to_vec();
        all.extend(["--json", "--connect-timeout", "30s"]);
        let output = lab.homi(&all)?;
        ensure!(
            output.success() && output.stderr.is_empty(),
            "homi {arguments:?} ends with {}: {}",
            output.code,
            output.stderr
        );
        output.json()
    };
    let discovered = homi(&["discover", &format!("nvme+tcp://{address}")])?;
    ensure!(
        records_of(&discovered).any(|record| record["subsystem"] == NQN && record["address"] == "10.0.2.15"),
        "homi discover: {discovered}"
    );
    // In the guest, where the addresses of the log lead somewhere.
    let listed = guest
        .sh("homi list --connect-timeout 30s --json nvme+tcp://127.0.0.1:4420")?
        .json()?;
    let sizes: Vec<u64> = listed["controllers"][0]["namespaces"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|namespace| namespace["block_size"].as_u64())
        .collect();
    ensure!(sizes == [512, 4096], "homi list: {listed}");
    let identified = homi(&["identify", &second])?;
    ensure!(
        identified["namespace"]["blocks"] == 1024 && identified["namespace"]["nsid"] == 2,
        "homi identify of a namespace: {identified}"
    );
    let identified = homi(&["identify", "--controller", &first])?;
    ensure!(
        identified["controller"]["subsystem"] == NQN && identified["controller"]["model"] == "Linux",
        "homi identify of a controller: {identified}"
    );
    let page = homi(&["identify", "--controller", "--raw", &first])?;
    ensure!(
        page["bytes"].as_str().is_some_and(|digits| digits.len() == 8192),
        "the page has not 4096 bytes: {page}"
    );

    let bytes = contents(9, SIZE + 100);
    let file = lab.scratch().join("file");
    std::fs::write(&file, &bytes)?;
    let file = file.display().to_string();
    let written = homi(&["write", &first, "--input", &file, "--offset", "4096"])?;
    ensure!(
        written["bytes_written"] == bytes.len() && written["flushed"] == true,
        "homi write: {written}"
    );
    let mut model = vec![0; 4 << 20];
    model
        .get_mut(4096..4096 + bytes.len())
        .ok_or_else(|| Failure::new("the file is too long"))?
        .copy_from_slice(&bytes);
    let path = attribute(guest, &format!("subsystems/{NQN}/namespaces/1/device_path"))?;
    compare_disk(lab, guest, &path, "first", &model)?;
    let read = homi(&["read", &first, "--offset", "4090", "--count", "16"])?;
    let digits: String = model
        .get(4090..4106)
        .unwrap_or_default()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    ensure!(
        read["data"] == digits,
        "homi read says {read} instead of {digits}"
    );
    let back = lab.scratch().join("back").display().to_string();
    homi(&[
        "read",
        &first,
        "--offset",
        "4096",
        "--count",
        &bytes.len().to_string(),
        "--output",
        &back,
    ])?;
    ensure!(
        std::fs::read(&back)? == bytes,
        "homi read --output brings other bytes"
    );
    // Namespace to namespace, other block sizes, with both digests, and from the machine back to a file.
    let copied = homi(&[
        "copy",
        &first,
        &second,
        "--verify",
        "--header-digest",
        "--data-digest",
    ])?;
    ensure!(
        copied["verified"] == true && copied["bytes_copied"] == 4 << 20,
        "homi copy: {copied}"
    );
    let path = attribute(guest, &format!("subsystems/{NQN}/namespaces/2/device_path"))?;
    compare_disk(lab, guest, &path, "second", &model)?;
    let third = lab.scratch().join("third").display().to_string();
    let copied = homi(&["copy", &second, &third, "--verify", "--checksum", "crc32c"])?;
    ensure!(
        copied["verified"] == true && std::fs::read(&third)? == model,
        "homi copy to a file: {copied}"
    );
    let outside = lab.homi(&["read", &first, "--offset", "4M"])?;
    let sentence = check_refusal(&outside, 1)?;
    ensure!(
        sentence.contains("4194304"),
        "a read past the end says: {sentence}"
    );
    let missing = lab.homi(&["read", &first.replace("nsid=1", "nsid=9")])?;
    let sentence = check_refusal(&missing, 1)?;
    ensure!(
        sentence.contains("namespace 9 does not exist"),
        "a namespace that is not there: {sentence}"
    );
    Ok(())
}
