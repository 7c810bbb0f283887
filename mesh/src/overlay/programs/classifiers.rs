//! Programs at the ingress of links: classifiers of a `clsact` queueing discipline, as `tc filter add dev LINK ingress pref 82 handle 1 bpf da`
//! makes them.
//!
//! On a link that is not up yet the place for them takes 0.1 ms; on one that is, the kernel drops for some milliseconds what is sent by it. So
//! it is made as a link is. The newer place for programs (tcx) drops nothing and takes ten milliseconds in any case, in which nothing
//! else of links and routes can be changed.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption,
};

use crate::overlay::netlink::{Netlink, failed, or_gone, or_none};

/// The order of ours among others, and its number there.
const PRIORITY: u16 = 82;
const HANDLE: u32 = 1;
/// What it is called where classifiers are listed.
const NAME: &str = "plexus";
const KIND: &str = "clsact";
/// What a link has that queues nothing.
const NOTHING: &str = "noqueue";
/// `ETH_P_ALL`.
const ALL: u16 = 0x0003;
/// What comes in.
const INGRESS: TcHandle = TcHandle { major: u16::MAX, minor: TcHandle::MIN_INGRESS };

/// What a link has of traffic control.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Control {
    /// Classifiers can be at its ingress.
    pub(super) has_place: bool,
    /// Somebody shapes what goes out by it, or has something else where the place would be.
    pub(super) is_others: bool,
}

/// The classifiers at a link's ingress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct There {
    /// The number of our program.
    pub(super) ours: Option<u32>,
    /// There are other ones.
    pub(super) others: bool,
}

impl Netlink {
    /// What links have, by their indexes; nothing where the kernel has no traffic control.
    pub(super) async fn traffic_control(&self) -> io::Result<BTreeMap<u32, Control>> {
        let mut all = BTreeMap::<u32, Control>::new();
        let mut listed = self.handle.qdisc().get().execute();
        while let Some(message) = or_none(listed.try_next().await, "list queueing disciplines")? {
            let control = all.entry(message.header.index.cast_unsigned()).or_default();
            let kind = message.attributes.iter().find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(kind.as_str()),
                _ => None,
            });
            match kind {
                Some(KIND) => control.has_place = true,
                Some(NOTHING) => {}
                _ => control.is_others = true,
            }
        }
        Ok(all)
    }

    /// Makes the place for classifiers at a link. That there is one, or that the link is gone, is no error.
    pub(in crate::overlay) async fn make_place(&self, link: u32) -> io::Result<()> {
        let handle = TcHandle { major: u16::MAX, minor: 0 };
        let header =
            TcHeader { index: link.cast_signed(), handle, parent: TcHandle::CLSACT, ..TcHeader::default() };
        let message = TcMessage::from_parts(header, vec![TcAttribute::Kind(KIND.to_owned())]);
        let made =
            self.change(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL).await;
        match or_without_link(made).map_err(|e| failed("make a place for classifiers", &e)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            done => done,
        }
    }

    /// What is at a link's ingress.
    pub(super) async fn classifier(&self, link: u32) -> io::Result<There> {
        let mut there = There::default();
        let mut listed = self.handle.traffic_filter(link.cast_signed()).get().ingress().execute();
        let next = |error| failed("list the classifiers of a link", &error);
        while let Some(message) = listed.try_next().await.map_err(next)? {
            match ours(&message) {
                Some(program) => there.ours = Some(program),
                // A list begins with what all of one order have in common.
                None => there.others |= message.header.info >> 16 != u32::from(PRIORITY),
            }
        }
        Ok(there)
    }

    /// Has a program see what comes in by a link, instead of one of ours that did. That the link is gone is no error.
    pub(super) async fn set_classifier(&self, link: u32, program: RawFd) -> io::Result<()> {
        let options = vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(NAME.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ];
        let attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned()), TcAttribute::Options(options)];
        let message = RouteNetlinkMessage::NewTrafficFilter(TcMessage::from_parts(header(link), attributes));
        let set = self.change(message, NLM_F_CREATE | NLM_F_REPLACE).await;
        or_without_link(set).map_err(|e| failed("set a classifier", &e))
    }

    /// Removes ours; none that is there is no error.
    pub(super) async fn remove_classifier(&self, link: u32) -> io::Result<()> {
        let attributes = vec![TcAttribute::Kind(TcFilterBpf::KIND.to_owned())];
        let message = RouteNetlinkMessage::DelTrafficFilter(TcMessage::from_parts(header(link), attributes));
        let removed = self.change(message, 0).await;
        match or_gone(removed).map_err(|e| failed("remove a classifier", &e)) {
            // There is no place for any.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            done => done,
        }
    }

    async fn change(&self, message: RouteNetlinkMessage, flags: u16) -> Result<(), rtnetlink::Error> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut answers = self.handle.clone().request(request)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return Err(rtnetlink::Error::NetlinkError(error));
            }
        }
        Ok(())
    }
}

/// Links go with their containers.
fn or_without_link(result: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    const ENODEV: i32 = 19;
    match result {
        Err(rtnetlink::Error::NetlinkError(error)) if error.to_io().raw_os_error() == Some(ENODEV) => Ok(()),
        result => result,
    }
}

/// Of ours at a link.
fn header(link: u32) -> TcHeader {
    let info = u32::from(PRIORITY) << 16 | u32::from(ALL.to_be());
    TcHeader {
        index: link.cast_signed(),
        handle: HANDLE.into(),
        parent: INGRESS,
        info,
        ..TcHeader::default()
    }
}

/// The number of its program.
fn ours(message: &TcMessage) -> Option<u32> {
    let options = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let is_ours = options.contains(&TcOption::Bpf(TcFilterBpfOption::ProgName(NAME.to_owned())));
    options.iter().filter(|_| is_ours && message.header.info >> 16 == u32::from(PRIORITY)).find_map(
        |option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
            _ => None,
        },
    )
}
