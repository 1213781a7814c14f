use std::net::IpAddr;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::{certificates, events};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status as KubeStatus};
use serde::Serialize;
use serde_json::json;

use super::*;

/// What we read of the JSON that the API's own types are written as.
fn read<T: DeserializeOwned>(object: &impl Serialize) -> T {
    let json = serde_json::to_vec(object).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn meta(name: &str) -> ObjectMeta {
    let text = |pairs: &[(&str, &str)]| {
        let pairs = pairs.iter();
        Some(
            pairs
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        )
    };
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some("payments".into()),
        uid: Some("u1".into()),
        resource_version: Some("42".into()),
        creation_timestamp: Some(serde_json::from_value(json!("2026-02-03T04:05:06Z")).unwrap()),
        labels: text(&[(SERVICE_NAME, "billing"), ("app", "billing")]),
        annotations: text(&[
            ("konghq.com/client-cert", "billing-tls"),
            ("configuration.konghq.com/client-cert", "old"),
            ("tlsward/listen", "7001"),
            ("kubectl.kubernetes.io/last-applied-configuration", "{}"),
            ("notkonghq.com/client-cert", "no"),
        ]),
        ..ObjectMeta::default()
    }
}

#[test]
fn a_secret_is_read_with_its_type_and_its_bytes() {
    let secret: Secret = read(&core::Secret {
        metadata: meta("billing-tls"),
        type_: Some("kubernetes.io/tls".into()),
        data: Some(
            [
                ("tls.key".to_owned(), ByteString(vec![0, 1, 255])),
                ("empty".to_owned(), ByteString(Vec::new())),
            ]
            .into(),
        ),
        ..core::Secret::default()
    });
    assert_eq!(
        secret.meta().object(),
        ObjectRef::new("payments", "billing-tls")
    );
    assert_eq!(secret.meta().resource_version, "42");
    let data = secret.into_data();
    assert_eq!(
        (data.uid.as_str(), data.kind.as_str()),
        ("u1", "kubernetes.io/tls")
    );
    assert_eq!(&data.entries["tls.key"][..], [0, 1, 255]);
    assert_eq!(&data.entries["empty"][..], b"");
}

#[test]
fn a_secret_without_data_or_with_null_is_empty_and_junk_is_refused_without_being_quoted() {
    for data in [json!(null), json!({})] {
        let secret: Secret = read(&json!({ "metadata": {}, "data": data }));
        assert!(secret.into_data().entries.is_empty());
    }
    let secret: Secret = read(&json!({ "data": { "a": null } }));
    assert!(secret.into_data().entries["a"].is_empty());
    for junk in [json!("S3CRET!"), json!("S3CRE")] {
        let json = json!({ "data": { "a": junk } }).to_string();
        let error = serde_json::from_str::<Secret>(&json).err().unwrap();
        assert!(!error.to_string().contains("S3CRE"), "{error}");
    }
}

#[test]
fn a_config_map_has_texts_and_bytes() {
    let map: ConfigMap = read(&core::ConfigMap {
        metadata: meta("roots"),
        data: Some([("ca.crt".to_owned(), "PEM".to_owned())].into()),
        binary_data: Some([("raw".to_owned(), ByteString(vec![7]))].into()),
        ..core::ConfigMap::default()
    });
    let data = map.into_data();
    assert_eq!(&data.entries["ca.crt"][..], b"PEM");
    assert_eq!(&data.entries["raw"][..], [7]);
    assert_eq!(data.kind, "");
}

#[test]
fn a_trust_bundle_is_one_entry() {
    let bundle: TrustBundle = read(&certificates::v1beta1::ClusterTrustBundle {
        metadata: meta("example.com:mtls:roots"),
        spec: certificates::v1beta1::ClusterTrustBundleSpec {
            trust_bundle: "PEM".into(),
            ..Default::default()
        },
    });
    assert_eq!(bundle.meta().name, "example.com:mtls:roots");
    assert_eq!(&bundle.into_data().entries["ca.crt"][..], b"PEM");
}

#[test]
fn a_service_is_read_as_far_as_it_concerns_us() {
    let port = |name: Option<&str>, port, protocol: Option<&str>| core::ServicePort {
        name: name.map(Into::into),
        port,
        protocol: protocol.map(Into::into),
        ..core::ServicePort::default()
    };
    let service: Service = read(&core::Service {
        metadata: meta("billing"),
        spec: Some(core::ServiceSpec {
            type_: Some("ClusterIP".into()),
            external_name: Some("left over".into()),
            ports: Some(vec![
                port(Some("https"), 443, Some("TCP")),
                port(None, 8443, None),
                port(Some("dns"), 53, Some("UDP")),
            ]),
            ..core::ServiceSpec::default()
        }),
        ..core::Service::default()
    });
    assert!(service.has_annotation("tlsward/listen"));
    assert!(!service.has_annotation("tlsward/other"));
    let service = service.into_object();
    assert_eq!(service.object, ObjectRef::new("payments", "billing"));
    assert_eq!(service.uid, "u1");
    assert_eq!(service.created_at, 1_770_091_506);
    let ports: Vec<_> = service
        .ports
        .iter()
        .map(|port| (port.name.as_str(), port.number))
        .collect();
    assert_eq!(ports, [("https", 443), ("", 8443)]);
    assert_eq!(service.external_name, None, "only where the type says so");
    let annotations: Vec<_> = service.annotations.keys().map(String::as_str).collect();
    assert_eq!(
        annotations,
        [
            "configuration.konghq.com/client-cert",
            "konghq.com/client-cert",
            "tlsward/listen"
        ]
    );

    let external: Service = read(&core::Service {
        metadata: meta("billing"),
        spec: Some(core::ServiceSpec {
            type_: Some("ExternalName".into()),
            external_name: Some("billing.example.com".into()),
            ..core::ServiceSpec::default()
        }),
        ..core::Service::default()
    });
    let external = external.into_object();
    assert_eq!(
        external.external_name.as_deref(),
        Some("billing.example.com")
    );
}

/// A slice with one endpoint.
fn slice(endpoint: discovery::Endpoint) -> discovery::EndpointSlice {
    let port = |name: Option<&str>, port, protocol: &str| discovery::EndpointPort {
        name: name.map(Into::into),
        port,
        protocol: Some(protocol.into()),
        ..discovery::EndpointPort::default()
    };
    discovery::EndpointSlice {
        metadata: meta("billing-abc"),
        address_type: "IPv4".into(),
        endpoints: Some(vec![endpoint]),
        ports: Some(vec![
            port(Some("https"), Some(8443), "TCP"),
            port(None, Some(8080), "TCP"),
            port(Some("quic"), Some(8443), "UDP"),
            port(Some("all"), None, "TCP"),
        ]),
    }
}

fn endpoint(addresses: &[&str]) -> discovery::Endpoint {
    discovery::Endpoint {
        addresses: addresses.iter().map(|it| (*it).to_owned()).collect(),
        ..discovery::Endpoint::default()
    }
}

#[test]
fn an_endpoint_is_read_with_the_ports_of_its_slice() {
    let hints = discovery::EndpointHints {
        for_zones: Some(vec![discovery::ForZone {
            name: "zone-a".into(),
        }]),
        for_nodes: Some(vec![discovery::ForNode {
            name: "node-1".into(),
        }]),
    };
    let slice: Slice = read(&slice(discovery::Endpoint {
        conditions: Some(discovery::EndpointConditions {
            ready: Some(false),
            serving: Some(true),
            terminating: Some(true),
        }),
        hints: Some(hints),
        target_ref: Some(core::ObjectReference {
            uid: Some("pod-uid".into()),
            ..core::ObjectReference::default()
        }),
        ..endpoint(&["10.0.0.1", "10.0.0.2"])
    }));
    assert_eq!(slice.service(), Some(ObjectRef::new("payments", "billing")));
    assert!(!slice.is_fqdn());
    let expected = Backend {
        id: "pod-uid".into(),
        addresses: ["10.0.0.1", "10.0.0.2"]
            .map(|it| it.parse::<IpAddr>().unwrap())
            .into(),
        ports: [("https".to_owned(), 8443), (String::new(), 8080)].into(),
        ready: false,
        serving: true,
        terminating: true,
        zones: ["zone-a".to_owned()].into(),
        nodes: ["node-1".to_owned()].into(),
    };
    assert_eq!(slice.into_backends(), [expected]);
}

#[test]
fn without_a_pod_an_endpoint_is_known_by_its_address_and_ports() {
    let id = |port: i32| {
        let mut slice = slice(endpoint(&["10.0.0.1"]));
        slice.ports.as_mut().unwrap()[0].port = Some(port);
        read::<Slice>(&slice).into_backends().remove(0).id
    };
    assert_eq!(id(1), id(1));
    assert_ne!(id(1), id(2), "two servers of one machine are two");
}

#[test]
fn absent_conditions_are_what_the_api_says_that_they_mean() {
    let conditions = |ready, serving| {
        let slice: Slice = read(&slice(discovery::Endpoint {
            conditions: Some(discovery::EndpointConditions {
                ready,
                serving,
                terminating: None,
            }),
            ..endpoint(&["10.0.0.1"])
        }));
        let backends = slice.into_backends();
        assert!(!backends[0].terminating);
        (backends[0].ready, backends[0].serving)
    };
    assert_eq!(conditions(None, None), (true, true));
    assert_eq!(conditions(Some(false), None), (false, false));
    assert_eq!(conditions(Some(false), Some(true)), (false, true));
    assert_eq!(conditions(None, Some(false)), (true, false));
    let bare: Slice = read(&slice(endpoint(&["10.0.0.1"])));
    assert!(bare.into_backends()[0].ready);
}

#[test]
fn slices_without_endpoints_ports_or_addresses_are_empty() {
    for slice in [
        json!({ "addressType": "IPv6", "endpoints": null, "ports": null }),
        json!({ "addressType": "IPv6", "endpoints": [] }),
        json!({ "addressType": "IPv6", "endpoints": [{ "addresses": ["no address"] }] }),
    ] {
        let slice: Slice = read(&slice);
        assert_eq!(slice.service(), None);
        assert_eq!(slice.into_backends(), []);
    }
    let slice: Slice =
        read(&json!({ "addressType": "FQDN", "endpoints": [{ "addresses": ["a.example"] }] }));
    assert!(slice.is_fqdn());
}

#[test]
fn a_status_is_read_and_what_is_none_is_its_own_message() {
    let status = KubeStatus {
        code: Some(403),
        message: Some("no".into()),
        reason: Some("Forbidden".into()),
        ..KubeStatus::default()
    };
    let status = Status::parse(&serde_json::to_vec(&status).unwrap());
    assert_eq!(
        (status.code, status.message.as_str(), status.reason.as_str()),
        (403, "no", "Forbidden")
    );
    assert_eq!(Status::parse(b"<html>").message, "<html>");
}

#[test]
fn events_are_what_the_api_calls_so() {
    // The kinds of Events that announce.rs writes are of this group and version.
    assert_eq!(
        <events::v1::Event as k8s_openapi::Resource>::API_VERSION,
        "events.k8s.io/v1"
    );
}
