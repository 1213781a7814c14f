//! Which endpoints of a Service take new connections: kube-proxy's rules, so that tlsward goes
//! where a connection to the Service's cluster IP would have gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// An endpoint of a Service, as its EndpointSlices say (discovery.k8s.io/v1). One that stands in
/// several slices, or with addresses of both families, is one backend for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Backend {
    /// What makes two entries one: the pod's uid, or else its address and ports.
    pub(crate) id: String,
    /// `addresses`; of one family. The first counts: the API gives the others no meaning.
    pub(crate) addresses: Vec<IpAddr>,
    /// The slice's ports of TCP, by name (empty where it has none).
    pub(crate) ports: BTreeMap<String, u16>,
    /// `conditions.ready`; absent means true.
    pub(crate) ready: bool,
    /// `conditions.serving`; absent means as `ready`.
    pub(crate) serving: bool,
    /// `conditions.terminating`; absent means false.
    pub(crate) terminating: bool,
    /// `hints.forZones`.
    pub(crate) zones: BTreeSet<String>,
    /// `hints.forNodes`.
    pub(crate) nodes: BTreeSet<String>,
}

impl Backend {
    /// Two that are known by nothing but their address are two servers where their ports differ.
    fn identity_at(&self, address: SocketAddr) -> String {
        match self.id.parse::<IpAddr>() {
            Ok(ip) if ip == address.ip() => address.to_string(),
            Ok(_) | Err(_) => self.id.clone(),
        }
    }
}

/// Where this process runs, as far as it was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) zone: Option<String>,
    pub(crate) node: Option<String>,
}

/// The endpoints that take new connections, by [`Backend::id`], each with the addresses of `port`
/// at which it can be reached: one, or with two families one of each, IPv4 first.
///
/// - Those that are ready; where none is, those that are terminating and still serve (KEP-1669).
/// - Of the ready ones of a family, those hinted for our node, if each has a hint for some node
///   and one of them is for ours (KEP-4444, `PreferSameNode`); else the same with zones (KEP-2433,
///   `PreferSameZone` and topology-aware routing); else all. A hint that is missing somewhere is
///   one that is being changed, so that following the others would overload a few.
/// - One without the port is left out (named ports that differ between pods). An address that
///   stands under two ids is the first one's.
pub(crate) fn choose(
    all: &[Backend],
    port: &str,
    place: &Place,
) -> BTreeMap<String, Vec<SocketAddr>> {
    let reachable: Vec<(&Backend, SocketAddr)> = all
        .iter()
        .filter_map(|backend| {
            let port = *backend.ports.get(port)?;
            let ip = *backend.addresses.first()?;
            Some((backend, SocketAddr::new(ip, port)))
        })
        .collect();

    let mut chosen: Vec<(&Backend, SocketAddr)> = Vec::new();
    // kube-proxy knows one family at a time, and hints are given for each by itself.
    for is_v6 in [false, true] {
        let of_family = reachable.iter().copied();
        let ready = of_family
            .filter(|(backend, address)| backend.ready && address.is_ipv6() == is_v6)
            .collect();
        chosen.append(&mut nearest(ready, place));
    }
    if chosen.is_empty() {
        chosen = reachable;
        chosen.retain(|(backend, _)| backend.serving && backend.terminating);
    }

    // By id and then by address, so that neither the order of slices nor a second entry counts.
    let chosen: BTreeSet<(String, SocketAddr)> = chosen
        .into_iter()
        .map(|(backend, address)| (backend.identity_at(address), address))
        .collect();
    let mut taken = BTreeSet::new();
    let mut endpoints: BTreeMap<String, Vec<SocketAddr>> = BTreeMap::new();
    for (id, address) in chosen {
        if taken.insert(address) {
            endpoints.entry(id).or_default().push(address);
        }
    }
    endpoints
}

/// What hints leave of ready endpoints of one family.
fn nearest<'a>(
    ready: Vec<(&'a Backend, SocketAddr)>,
    place: &Place,
) -> Vec<(&'a Backend, SocketAddr)> {
    type Hints = fn(&Backend) -> &BTreeSet<String>;
    let rules: [(Option<&String>, Hints); 2] = [
        (place.node.as_ref(), |backend| &backend.nodes),
        (place.zone.as_ref(), |backend| &backend.zones),
    ];
    for (here, hints) in rules {
        let Some(here) = here else { continue };
        let all_hinted = ready.iter().all(|(it, _)| !hints(it).is_empty());
        let for_here = |(it, _): &(&Backend, _)| hints(it).contains(here);
        if all_hinted && ready.iter().any(for_here) {
            return ready.into_iter().filter(for_here).collect();
        }
    }
    ready
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: &str = "https";

    fn backend(id: &str, ip: &str) -> Backend {
        Backend {
            id: id.to_owned(),
            addresses: vec![ip.parse().unwrap()],
            ports: BTreeMap::from([(PORT.to_owned(), 8443)]),
            ready: true,
            serving: true,
            terminating: false,
            zones: BTreeSet::new(),
            nodes: BTreeSet::new(),
        }
    }

    fn ready(id: &str) -> Backend {
        backend(id, &format!("10.0.0.{id}"))
    }

    /// Its readiness probe fails.
    fn unready(id: &str) -> Backend {
        Backend {
            ready: false,
            serving: false,
            ..ready(id)
        }
    }

    fn terminating(id: &str) -> Backend {
        Backend {
            ready: false,
            terminating: true,
            ..ready(id)
        }
    }

    fn set(of: &[&str]) -> BTreeSet<String> {
        of.iter().copied().map(str::to_owned).collect()
    }

    fn for_zones(id: &str, zones: &[&str]) -> Backend {
        Backend {
            zones: set(zones),
            ..ready(id)
        }
    }

    fn for_node(id: &str, node: &str, zone: &str) -> Backend {
        Backend {
            nodes: set(&[node]),
            zones: set(&[zone]),
            ..ready(id)
        }
    }

    fn place(zone: Option<&str>, node: Option<&str>) -> Place {
        Place {
            zone: zone.map(str::to_owned),
            node: node.map(str::to_owned),
        }
    }

    fn chosen_at(place: &Place, all: &[Backend]) -> Vec<String> {
        let chosen = choose(all, PORT, place);
        let mut reversed = all.to_vec();
        reversed.reverse();
        assert_eq!(chosen, choose(&reversed, PORT, place), "the order counts");
        chosen.into_keys().collect()
    }

    fn chosen(all: &[Backend]) -> Vec<String> {
        chosen_at(&Place::default(), all)
    }

    #[test]
    fn only_ready_endpoints_are_chosen_as_long_as_one_is() {
        assert_eq!(
            chosen(&[ready("2"), unready("3"), terminating("4"), ready("1")]),
            ["1", "2"]
        );
    }

    #[test]
    fn where_none_is_ready_those_that_terminate_and_still_serve_are_chosen() {
        let gone = Backend {
            serving: false,
            ..terminating("3")
        };
        let warming_up = Backend {
            ready: false,
            ..ready("4")
        };
        let all = [unready("1"), terminating("2"), gone, warming_up];
        assert_eq!(chosen(&all), ["2"]);
        assert!(chosen(&all[2..]).is_empty());
        assert!(chosen(&[]).is_empty());
    }

    /// `publishNotReadyAddresses`: the controller says ready of a pod that terminates.
    #[test]
    fn an_endpoint_that_is_called_ready_is_although_it_terminates() {
        let published = Backend {
            terminating: true,
            serving: false,
            ..ready("1")
        };
        assert_eq!(chosen(&[published, terminating("2")]), ["1"]);
    }

    #[test]
    fn hints_for_our_zone_are_followed_only_if_every_ready_endpoint_has_one() {
        let here = &place(Some("a"), None);
        let (one, two) = (for_zones("1", &["a"]), for_zones("2", &["b"]));
        let both = for_zones("3", &["a", "b"]);
        let all = [one.clone(), two.clone(), both];
        assert_eq!(chosen_at(here, &all), ["1", "3"]);
        // Somewhere else, or nowhere.
        assert_eq!(chosen_at(&place(Some("c"), None), &all), ["1", "2", "3"]);
        assert_eq!(chosen_at(&place(None, None), &all), ["1", "2", "3"]);
        // One lacks its hint.
        let all = [one.clone(), two.clone(), ready("4")];
        assert_eq!(chosen_at(here, &all), ["1", "2", "4"]);
        // One that is not ready does not count, either way.
        let all = [one.clone(), two.clone(), unready("5")];
        assert_eq!(chosen_at(here, &all), ["1"]);
        let not_ready = Backend {
            ready: false,
            ..one
        };
        assert_eq!(chosen_at(here, &[not_ready, two]), ["2"]);
    }

    #[test]
    fn hints_for_our_node_go_before_those_for_our_zone() {
        let here = &place(Some("a"), Some("n1"));
        let all = [
            for_node("1", "n1", "a"),
            for_node("2", "n2", "a"),
            for_node("3", "n3", "b"),
        ];
        assert_eq!(chosen_at(here, &all), ["1"]);
        // None on this node: the zone's.
        assert_eq!(chosen_at(here, &all[1..]), ["2"]);
        assert_eq!(chosen_at(&place(Some("a"), None), &all), ["1", "2"]);
        // Nor in this zone: all.
        assert_eq!(chosen_at(here, &all[2..]), ["3"]);
        // One lacks its hint for a node, but not that for a zone.
        let all = [all[0].clone(), all[1].clone(), for_zones("4", &["b"])];
        assert_eq!(chosen_at(here, &all), ["1", "2"]);
    }

    #[test]
    fn those_that_terminate_are_chosen_whatever_their_hints() {
        let other = Backend {
            zones: set(&["b"]),
            ..terminating("1")
        };
        let ours = Backend {
            zones: set(&["a"]),
            ..terminating("2")
        };
        assert_eq!(
            chosen_at(&place(Some("a"), None), &[other, ours]),
            ["1", "2"]
        );
    }

    #[test]
    fn an_endpoint_with_both_families_is_one_with_two_addresses() {
        let v6 = |id: &str| backend(id, &format!("fd00::{id}"));
        let all = [v6("1"), ready("2"), ready("1"), v6("2"), v6("3")];
        let addresses = choose(&all, PORT, &Place::default());
        let expected = |of: &[&str]| -> Vec<SocketAddr> {
            of.iter().map(|address| address.parse().unwrap()).collect()
        };
        assert_eq!(
            addresses.into_iter().collect::<Vec<_>>(),
            [
                (
                    "1".to_owned(),
                    expected(&["10.0.0.1:8443", "[fd00::1]:8443"])
                ),
                (
                    "2".to_owned(),
                    expected(&["10.0.0.2:8443", "[fd00::2]:8443"])
                ),
                ("3".to_owned(), expected(&["[fd00::3]:8443"])),
            ]
        );
    }

    #[test]
    fn hints_are_followed_for_each_family_by_itself() {
        let v6 = |id: &str| backend(id, &format!("fd00::{id}"));
        let all = [
            for_zones("1", &["a"]),
            for_zones("2", &["b"]),
            v6("1"),
            v6("2"),
        ];
        let addresses = choose(&all, PORT, &place(Some("a"), None));
        assert_eq!(addresses["1"].len(), 2);
        assert_eq!(addresses["2"], ["[fd00::2]:8443".parse().unwrap()]);
    }

    #[test]
    fn entries_of_one_endpoint_in_two_slices_merge_and_one_that_is_ready_suffices() {
        let all = [ready("1"), ready("1"), unready("1"), unready("2")];
        let addresses = choose(&all, PORT, &Place::default());
        assert_eq!(addresses.len(), 1);
        assert_eq!(addresses["1"], ["10.0.0.1:8443".parse().unwrap()]);
    }

    #[test]
    fn without_pods_two_ports_of_one_address_are_two_endpoints() {
        let at = |number| Backend {
            ports: [(PORT.to_owned(), number)].into(),
            ..backend("10.0.0.1", "10.0.0.1")
        };
        assert_eq!(chosen(&[at(1), at(2)]), ["10.0.0.1:1", "10.0.0.1:2"]);
    }

    #[test]
    fn an_address_that_stands_under_two_ids_is_one_endpoint() {
        let all = [backend("b", "10.0.0.1"), backend("a", "10.0.0.1")];
        assert_eq!(chosen(&all), ["a"]);
    }

    #[test]
    fn a_port_may_have_another_number_for_each_pod_and_a_pod_without_it_is_left_out() {
        let with_port = |id: &str, name: &str, number| Backend {
            ports: BTreeMap::from([(name.to_owned(), number)]),
            ..ready(id)
        };
        let all = [
            with_port("1", PORT, 8443),
            with_port("2", PORT, 9443),
            with_port("3", "metrics", 9090),
            with_port("4", "", 443),
        ];
        let ports = |port: &str| -> Vec<u16> {
            let chosen = choose(&all, port, &Place::default());
            chosen.into_values().map(|of| of[0].port()).collect()
        };
        assert_eq!(ports(PORT), [8443, 9443]);
        assert_eq!(ports(""), [443]);
        assert!(ports("http").is_empty());
    }

    #[test]
    fn hints_of_endpoints_without_the_port_do_not_count() {
        let elsewhere = Backend {
            ports: BTreeMap::from([("metrics".to_owned(), 9090)]),
            ..ready("3")
        };
        let all = [for_zones("1", &["a"]), for_zones("2", &["b"]), elsewhere];
        assert_eq!(chosen_at(&place(Some("a"), None), &all), ["1"]);
    }

    /// The API gives no meaning to further addresses, and kube-proxy does not look at them.
    #[test]
    fn the_first_address_of_an_entry_counts() {
        let mut several = ready("1");
        several.addresses.push("10.9.9.9".parse().unwrap());
        let nowhere = Backend {
            addresses: Vec::new(),
            ..ready("2")
        };
        let addresses = choose(&[several, nowhere], PORT, &Place::default());
        assert_eq!(addresses.len(), 1);
        assert_eq!(addresses["1"], ["10.0.0.1:8443".parse().unwrap()]);
    }
}
