//! What a filter may ask of the rows of each answer, by the names that Consul documents.

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Kind {
    Text,
    Number,
    Flag,
    /// Of texts.
    List,
    /// Of texts by name.
    Map,
}

impl Kind {
    /// As it stands in an error.
    pub(super) fn shown(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Number => "a number",
            Self::Flag => "true or false",
            Self::List => "a list",
            Self::Map => "a map",
        }
    }
}

/// A field, its names joined by dots.
#[derive(Debug)]
pub(in super::super) struct Field(pub(super) &'static str, pub(super) Kind);

pub(in super::super) type Fields = &'static [Field];

/// Of [`crate::api::ConsulNode`].
pub(in super::super) const NODE: Fields = &[
    Field("Address", Kind::Text),
    Field("Datacenter", Kind::Text),
    Field("ID", Kind::Text),
    Field("Meta", Kind::Map),
    Field("Node", Kind::Text),
    Field("TaggedAddresses", Kind::Map),
];

/// Of [`crate::api::ConsulCatalogService`].
pub(in super::super) const CATALOG_SERVICE: Fields = &[
    Field("Address", Kind::Text),
    Field("Datacenter", Kind::Text),
    Field("ID", Kind::Text),
    Field("Node", Kind::Text),
    Field("NodeMeta", Kind::Map),
    Field("ServiceAddress", Kind::Text),
    Field("ServiceEnableTagOverride", Kind::Flag),
    Field("ServiceID", Kind::Text),
    Field("ServiceKind", Kind::Text),
    Field("ServiceMeta", Kind::Map),
    Field("ServiceName", Kind::Text),
    Field("ServicePort", Kind::Number),
    Field("ServiceTags", Kind::List),
    Field("ServiceWeights.Passing", Kind::Number),
    Field("ServiceWeights.Warning", Kind::Number),
    Field("TaggedAddresses", Kind::Map),
];

/// Of [`crate::api::ConsulInstance`].
pub(in super::super) const INSTANCE: Fields = &[
    Field("Address", Kind::Text),
    Field("EnableTagOverride", Kind::Flag),
    Field("ID", Kind::Text),
    Field("Kind", Kind::Text),
    Field("Meta", Kind::Map),
    Field("Port", Kind::Number),
    Field("Service", Kind::Text),
    Field("Tags", Kind::List),
    Field("Weights.Passing", Kind::Number),
    Field("Weights.Warning", Kind::Number),
];

/// Of [`crate::api::ConsulHealthCheck`].
pub(in super::super) const CHECK: Fields = &[
    Field("CheckID", Kind::Text),
    Field("Name", Kind::Text),
    Field("Node", Kind::Text),
    Field("Notes", Kind::Text),
    Field("Output", Kind::Text),
    Field("ServiceID", Kind::Text),
    Field("ServiceName", Kind::Text),
    Field("ServiceTags", Kind::List),
    Field("Status", Kind::Text),
    Field("Type", Kind::Text),
];

/// Of [`crate::api::ConsulHealthEntry`].
pub(in super::super) const HEALTH_ENTRY: Fields = &[
    Field("Checks.CheckID", Kind::Text),
    Field("Checks.Name", Kind::Text),
    Field("Checks.Node", Kind::Text),
    Field("Checks.Notes", Kind::Text),
    Field("Checks.Output", Kind::Text),
    Field("Checks.ServiceID", Kind::Text),
    Field("Checks.ServiceName", Kind::Text),
    Field("Checks.ServiceTags", Kind::List),
    Field("Checks.Status", Kind::Text),
    Field("Checks.Type", Kind::Text),
    Field("Node.Address", Kind::Text),
    Field("Node.Datacenter", Kind::Text),
    Field("Node.ID", Kind::Text),
    Field("Node.Meta", Kind::Map),
    Field("Node.Node", Kind::Text),
    Field("Node.TaggedAddresses", Kind::Map),
    Field("Service.Address", Kind::Text),
    Field("Service.EnableTagOverride", Kind::Flag),
    Field("Service.ID", Kind::Text),
    Field("Service.Kind", Kind::Text),
    Field("Service.Meta", Kind::Map),
    Field("Service.Port", Kind::Number),
    Field("Service.Service", Kind::Text),
    Field("Service.Tags", Kind::List),
    Field("Service.Weights.Passing", Kind::Number),
    Field("Service.Weights.Warning", Kind::Number),
];
