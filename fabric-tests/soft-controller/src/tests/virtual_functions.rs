use homi_spec::identify::{Cns, ControllerList, Identify};
use homi_spec::manage::{
    NamespaceAttachment, PrimaryCapabilities, ResourceType, SecondaryControllers, VirtualizationAction,
    VirtualizationManagement,
};
use homi_spec::nvm::{BlockCommand, flush};
use homi_spec::registers::offset;
use homi_spec::{Cqe, Status};
use zerocopy::{FromBytes, IntoBytes};

use super::{Memory, Raw, enabled};
use crate::{MisuseKind, SoftConfig, SriovConfig};

fn primary() -> Raw {
    Raw::new(SoftConfig {
        sriov: Some(SriovConfig {
            functions: 2,
            flexible_queues: 6,
            flexible_vectors: 4,
            queues_each: 4,
            vectors_each: 3,
        }),
        ..SoftConfig::default()
    })
}

fn manage(
    raw: &mut Raw,
    action: VirtualizationAction,
    resource: ResourceType,
    cntlid: u16,
    count: u16,
) -> Cqe {
    let command = VirtualizationManagement {
        action,
        resource,
        cntlid,
        count,
    };
    raw.admin(command.to_sqe(0))
}

fn online(raw: &mut Raw, cntlid: u16, queues: u16, vectors: u16) -> Status {
    let assign = VirtualizationAction::SECONDARY_ASSIGN;
    let cqe = manage(raw, assign, ResourceType::QUEUES, cntlid, queues);
    assert_eq!(
        (cqe.status(), cqe.dw0.get()),
        (Status::SUCCESS, u32::from(queues))
    );
    let cqe = manage(raw, assign, ResourceType::INTERRUPTS, cntlid, vectors);
    assert_eq!(
        (cqe.status(), cqe.dw0.get()),
        (Status::SUCCESS, u32::from(vectors))
    );
    let online = VirtualizationAction::SECONDARY_ONLINE;
    manage(raw, online, ResourceType::QUEUES, cntlid, 0)
        .status()
        .code()
}

#[test]
fn virtual_functions_are_given_resources_and_driven() {
    let mut raw = primary();
    assert!(raw.model.function(1).is_none());
    assert_eq!(raw.model.enable_vfs(2), 2);
    let offline = raw.model.function(1).unwrap();
    assert_eq!(offline.vectors(), 0);
    let registers = offline.registers(0).unwrap();
    assert_eq!(registers.read32(offset::CSTS as u64) & 2, 2);
    drop(offline);

    assert_eq!(online(&mut raw, 1, 3, 2), Status::SUCCESS);
    assert_eq!(online(&mut raw, 2, 3, 2), Status::SUCCESS);
    let capabilities = Identify {
        cns: Cns::PRIMARY_CAPABILITIES,
        ..Identify::default()
    };
    assert!(raw.admin_page(capabilities.to_sqe(0)).status().is_success());
    let page = PrimaryCapabilities::read_from_bytes(&raw.page.bytes(0, 4096)).unwrap();
    assert_eq!(
        (page.crt, page.vqfrt.get(), page.vqrfa.get(), page.virfa.get()),
        (3, 6, 6, 4)
    );
    let list = Identify {
        cns: Cns::SECONDARY_CONTROLLERS,
        cntid: 2,
        ..Identify::default()
    };
    assert!(raw.admin_page(list.to_sqe(0)).status().is_success());
    let list = SecondaryControllers::read_from_bytes(&raw.page.bytes(0, 4096)).unwrap();
    let entries: Vec<_> = list.iter().collect();
    assert_eq!(
        (entries.len(), entries[0].scid.get(), entries[0].nvq.get()),
        (1, 2, 3)
    );
    assert!(entries[0].online());

    raw.page
        .region
        .write(0, ControllerList::new([1, 2]).as_bytes())
        .unwrap();
    let attach = NamespaceAttachment {
        nsid: 1,
        sel: NamespaceAttachment::ATTACH,
    };
    assert!(raw.admin_page(attach.to_sqe(0)).status().is_success());

    // Both at once, each with queues of its own.
    let mut driven = Vec::new();
    for index in [1, 2] {
        let mut vf = Raw::warm(&raw.model, index);
        assert_eq!(vf.function.vectors(), 2);
        vf.set_queues(8);
        let pair = vf.pair(1, 8);
        let data = Memory::new(&vf.function, 4096);
        driven.push((vf, pair, data));
    }
    for (vf, pair, data) in &mut driven {
        data.region.fill(0, 512, 42).unwrap();
        let mut write = BlockCommand::write(1, 5, 1).unwrap().to_sqe(0);
        write.set_prp(data.at(), 0);
        assert!(vf.run(pair, write).status().is_success());
    }
    let mut media = [0; 512];
    assert!(raw.model.read_media(1, 5 * 512, &mut media));
    assert_eq!(media, [42; 512]);
    assert_eq!(raw.model.misuse(), []);

    // Taken away under use: it fails, and its driver is not to blame.
    let offline = VirtualizationAction::SECONDARY_OFFLINE;
    assert!(
        manage(&mut raw, offline, ResourceType::QUEUES, 1, 0)
            .status()
            .is_success()
    );
    let (vf, pair, _) = &mut driven[0];
    assert!(vf.csts().fatal());
    pair.put(flush(1, 0));
    vf.ring(pair);
    assert_eq!(raw.model.misuse(), []);
    let (vf, pair, _) = &mut driven[1];
    assert!(vf.run(pair, flush(1, 0)).status().is_success());
    // A reset of the primary controller takes the other offline.
    raw.write(offset::CC, 0);
    raw.model.run_until_idle();
    assert!(driven[1].0.csts().fatal());
}

#[test]
fn resources_are_limited() {
    let mut raw = primary();
    raw.model.enable_vfs(1);
    let assign = VirtualizationAction::SECONDARY_ASSIGN;
    for (action, resource, cntlid, count, status) in [
        (assign, ResourceType::QUEUES, 1, 5, Status::INVALID_RESOURCE_COUNT),
        (assign, ResourceType::QUEUES, 3, 1, Status::INVALID_CONTROLLER_ID),
        (assign, ResourceType::QUEUES, 0, 1, Status::INVALID_CONTROLLER_ID),
        (assign, ResourceType(5), 1, 1, Status::INVALID_RESOURCE_ID),
        (
            VirtualizationAction::SECONDARY_ONLINE,
            ResourceType::QUEUES,
            1,
            0,
            Status::INVALID_SECONDARY_STATE,
        ),
        (assign, ResourceType::QUEUES, 1, 4, Status::SUCCESS),
        (assign, ResourceType::QUEUES, 2, 3, Status::INVALID_RESOURCE_COUNT),
        (assign, ResourceType::QUEUES, 2, 2, Status::SUCCESS),
        (assign, ResourceType::INTERRUPTS, 2, 3, Status::SUCCESS),
        // Its function is not there.
        (
            VirtualizationAction::SECONDARY_ONLINE,
            ResourceType::QUEUES,
            2,
            0,
            Status::INVALID_SECONDARY_STATE,
        ),
        (assign, ResourceType::INTERRUPTS, 1, 1, Status::SUCCESS),
        (
            VirtualizationAction::SECONDARY_ONLINE,
            ResourceType::QUEUES,
            1,
            0,
            Status::SUCCESS,
        ),
        (
            assign,
            ResourceType::QUEUES,
            1,
            2,
            Status::INVALID_SECONDARY_STATE,
        ),
        (
            VirtualizationAction(3),
            ResourceType::QUEUES,
            1,
            2,
            Status::INVALID_FIELD,
        ),
    ] {
        let got = manage(&mut raw, action, resource, cntlid, count).status();
        assert!(got.is(status), "{action} {resource} {cntlid} {count}: {got}");
    }
}

#[test]
fn an_offline_function_takes_no_registers_and_goes_with_the_physical_one() {
    let raw = primary();
    raw.model.enable_vfs(1);
    let vf = raw.model.function(1).unwrap();
    let registers = vf.registers(0).unwrap();
    registers.write32(offset::CC as u64, enabled().0);
    assert_eq!(raw.model.misuse()[0].kind, MisuseKind::Offline { at: 0x14 });
    raw.model.remove(0);
    assert_eq!(registers.read32(0), u32::MAX);
    assert!(vf.registers(0).is_err());
}
