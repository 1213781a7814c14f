//! From a Kubernetes Service and a port to where connections go.

use std::collections::BTreeMap;

use crate::config::kubernetes::names::PortRef;
use crate::config::kubernetes::{ObjectRef, ServiceBackend, ServiceObject, ServicePort};
use crate::config::problem::Wrong;
use crate::config::{Upstream, UpstreamAddress};

/// Where connections to a Service go: to its endpoints, or where its type is `ExternalName` to
/// that name. `port` is what was said of the port, if anything.
pub(super) fn upstream(service: &ServiceObject, port: Option<&PortRef>) -> Result<Upstream, Wrong> {
    let object = &service.object;
    if let Some(name) = &service.external_name {
        let number = match port {
            Some(PortRef::Number(number)) => *number,
            Some(PortRef::Name(_)) | None => find(service, port)?.number,
        };
        return UpstreamAddress::external(name, number)
            .map(|address| Upstream::Addresses(vec![address]))
            .map_err(|wrong| {
                Wrong::new(
                    format!("the external name of Service {object}: {}", wrong.reason),
                    "correct spec.externalName of the Service",
                )
            });
    }
    let port = find(service, port)?;
    Ok(Upstream::Service(ServiceBackend {
        service: object.clone(),
        port: port.name.clone(),
    }))
}

/// A Service that has the port.
pub(super) fn assumed(
    object: &ObjectRef,
    port: Option<&PortRef>,
    annotations: &BTreeMap<String, String>,
) -> ServiceObject {
    let (name, number) = match port {
        Some(PortRef::Name(name)) => (name.clone(), 1),
        Some(PortRef::Number(number)) => (String::new(), *number),
        None => (String::new(), 1),
    };
    ServiceObject {
        object: object.clone(),
        uid: String::new(),
        created_at: 0,
        annotations: annotations.clone(),
        ports: vec![ServicePort { name, number }],
        external_name: None,
    }
}

fn find<'s>(service: &'s ServiceObject, port: Option<&PortRef>) -> Result<&'s ServicePort, Wrong> {
    let object = &service.object;
    let ports = &service.ports;
    let there_are = || match ports.is_empty() {
        true => "it has no TCP port".to_owned(),
        false => format!("it has {}", shown(service)),
    };
    let found = match port {
        Some(PortRef::Name(name)) => ports.iter().find(|port| port.name == *name),
        Some(PortRef::Number(number)) => ports.iter().find(|port| port.number == *number),
        None => match ports.as_slice() {
            [only] => Some(only),
            [] if service.external_name.is_some() => {
                return Err(Wrong::new(
                    format!("Service {object} is an ExternalName without ports"),
                    "say the number of the external server's port",
                ));
            }
            [] => {
                return Err(Wrong::new(
                    format!("Service {object} has no TCP port"),
                    "give the Service a port, or choose another Service",
                ));
            }
            _ => {
                return Err(Wrong::new(
                    format!("Service {object} has several ports: {}", shown(service)),
                    "say which one: by its name or its number",
                ));
            }
        },
    };
    found.ok_or_else(|| {
        let wanted = match port {
            Some(PortRef::Name(name)) => format!("{name:?}"),
            Some(PortRef::Number(number)) => number.to_string(),
            None => String::new(),
        };
        Wrong::new(
            format!("Service {object} has no TCP port {wanted}; {}", there_are()),
            "name one of the Service's ports, by its name or its number",
        )
    })
}

/// `http (80), https (443)`.
fn shown(service: &ServiceObject) -> String {
    const MOST: usize = 20;
    let ports = service.ports.iter().take(MOST);
    let ports = ports.map(|port| match port.name.as_str() {
        "" => port.number.to_string(),
        name => format!("{name} ({})", port.number),
    });
    ports.collect::<Vec<_>>().join(", ")
}
