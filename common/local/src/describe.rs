//! [`Description`]: what a drive's Identify pages say about a namespace, whoever asked for them.

use std::num::NonZeroU32;

use homi_spec::identify::{
    Csi, IdentifyController, IdentifyNamespace, NamespaceDescriptors, NamespaceId, dlfeat, nmic,
};

use crate::geometry::{GeometryError, NamespaceGeometry};
use crate::kernel::{self, NamespaceIds};

/// A namespace of a drive.
pub(crate) struct Description {
    pub(crate) geometry: NamespaceGeometry,
    /// Largest transfer of one command in bytes, with memory pages of 4 KiB; `None` if the controller has no limit.
    pub(crate) max_transfer: Option<u32>,
    pub(crate) ids: NamespaceIds,
    pub(crate) shared: bool,
    pub(crate) model: String,
    pub(crate) firmware: String,
}

/// Why a namespace cannot be served.
#[derive(Debug)]
pub(crate) enum Unfit {
    /// The page makes no sense.
    Page(&'static str),
    /// So many bytes of metadata per block.
    Metadata(u16),
    /// Another command set.
    CommandSet(u8),
    Geometry(GeometryError),
}

impl Description {
    /// `descriptors` is the page of namespace identification descriptors, where there is one.
    pub(crate) fn new(
        nsid: u32,
        controller: &IdentifyController,
        namespace: &IdentifyNamespace,
        descriptors: Option<&[u8]>,
    ) -> Result<Self, Unfit> {
        let text = |text: Option<&str>| text.unwrap_or_default().trim().to_owned();
        let mut ids = NamespaceIds {
            nsid,
            serial: text(controller.serial()),
            nguid: kernel::known(namespace.nguid),
            eui64: kernel::known(namespace.eui64),
            uuid: None,
        };
        for descriptor in descriptors
            .map(NamespaceDescriptors::new)
            .into_iter()
            .flatten()
            .map_while(Result::ok)
        {
            match descriptor {
                NamespaceId::Eui64(id) => ids.eui64 = Some(id),
                NamespaceId::Nguid(id) => ids.nguid = Some(id),
                NamespaceId::Uuid(id) => ids.uuid = Some(id),
                NamespaceId::Csi(set) if set != Csi::NVM => return Err(Unfit::CommandSet(set.0)),
                NamespaceId::Csi(_) | NamespaceId::Unknown { .. } => {}
            }
        }
        Ok(Self {
            geometry: geometry(namespace)?,
            max_transfer: controller
                .max_transfer(0)
                .and_then(|bytes| u32::try_from(bytes).ok()),
            ids,
            shared: namespace.nmic & nmic::SHARED != 0,
            model: text(controller.model()),
            firmware: text(controller.firmware()),
        })
    }
}

/// What the namespace looks like, if it is one that can be served.
fn geometry(namespace: &IdentifyNamespace) -> Result<NamespaceGeometry, Unfit> {
    let format = namespace
        .format()
        .ok_or(Unfit::Page("its format is not among those that it lists"))?;
    let block_size = format
        .block_size()
        .ok_or(Unfit::Page("its block size is no power of two from 512 on"))?;
    if format.ms.get() != 0 {
        return Err(Unfit::Metadata(format.ms.get()));
    }
    let geometry = NamespaceGeometry::new(block_size, namespace.nsze.get()).map_err(Unfit::Geometry)?;
    Ok(geometry
        .with_read_only(namespace.nsattr & 1 != 0)
        .with_optimal_io_boundary(NonZeroU32::new(namespace.noiob.get().into()))
        .with_deallocated_reads_zeroes(namespace.dlfeat & dlfeat::READ_MASK == dlfeat::READ_ZEROES))
}

#[cfg(test)]
mod tests {
    use homi_spec::identify::LbaFormat;
    use zerocopy::FromZeros;

    use super::*;

    fn namespace(format: LbaFormat) -> IdentifyNamespace {
        let mut page = IdentifyNamespace::new_zeroed();
        page.nsze = 1000.into();
        page.lbaf[0] = format;
        page.dlfeat = dlfeat::READ_ZEROES;
        page.noiob = 64.into();
        page
    }

    #[test]
    fn formats_that_cannot_be_served_are_told_apart() {
        let good = geometry(&namespace(LbaFormat::plain(12))).unwrap();
        assert_eq!((good.block_size(), good.blocks()), (4096, 1000));
        assert_eq!(good.optimal_io_boundary(), NonZeroU32::new(64));
        assert!(good.deallocated_reads_zeroes() && !good.read_only());
        let metadata = LbaFormat {
            ms: 8.into(),
            ..LbaFormat::plain(9)
        };
        assert!(matches!(geometry(&namespace(metadata)), Err(Unfit::Metadata(8))));
        match geometry(&namespace(LbaFormat::plain(13))) {
            Err(Unfit::Geometry(error)) => assert!(error.to_string().contains("512 or 4096 bytes, not 8192")),
            other => panic!("{other:?}"),
        }
        assert!(matches!(
            geometry(&namespace(LbaFormat::plain(3))),
            Err(Unfit::Page(reason)) if reason.contains("no power of two")
        ));
        let mut protected = namespace(LbaFormat::plain(9));
        protected.nsattr = 1;
        assert!(geometry(&protected).unwrap().read_only());
        protected.flbas = 7;
        assert!(matches!(geometry(&protected), Err(Unfit::Page(_))));
    }
}
