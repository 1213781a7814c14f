//! Environment variables of Kong: one client certificate for all upstreams, into `[defaults.tls]`.

use std::collections::BTreeMap;
use std::path::Path;

use super::draft::{Draft, Kind, Note};
use super::openssl::{self, Version};
use super::sources::{Mistake, Place, Source};

/// `KEY=VALUE`.
#[derive(Clone, Debug)]
struct Variable {
    value: String,
    place: Place,
    /// It comes from a Secret or ConfigMap, or depends on other variables.
    is_elsewhere: bool,
}

type Variables = BTreeMap<String, Variable>;

/// The forms in which nginx's directives are given: for HTTP, for `stream`, and for HTTP as a whole.
const PREFIXES: [&str; 3] = [
    "KONG_NGINX_PROXY_PROXY_SSL_",
    "KONG_NGINX_SPROXY_PROXY_SSL_",
    "KONG_NGINX_HTTP_PROXY_SSL_",
];

/// Reads the files, later ones over earlier ones, and sets the defaults.
pub(super) fn convert(sources: &[Source], draft: &mut Draft) -> Result<(), Mistake> {
    let Some(first) = sources.first() else {
        return Ok(());
    };
    let mut variables = Variables::new();
    let mut strangers = Vec::new();
    for source in sources {
        let (more, stranger) = read(source);
        variables.extend(more);
        strangers.extend(stranger);
    }
    if !variables.keys().any(|name| name.starts_with("KONG_")) {
        return Err(Mistake::new(
            &first.at(0),
            "sets no variable that begins with KONG_",
            "name a file with KONG_…=… lines, or a manifest with an env list",
        ));
    }
    for place in strangers {
        draft.note(Note::new(
            Kind::Explained,
            &place,
            "other lines",
            "are no variables of Kong (nothing that begins with KONG_)",
            "nothing is taken from them",
        ));
    }
    let prefix = PREFIXES
        .into_iter()
        .find(|prefix| variables.keys().any(|name| name.starts_with(prefix)))
        .unwrap_or(PREFIXES[0]);
    let mut kong = Kong {
        variables,
        prefix,
        draft,
        place: first.at(0),
    };
    kong.trust();
    kong.verification();
    kong.identity();
    kong.rest();
    kong.draft.example.extend(
        [
            " Each listener and where its callers go, by hand: Kong has routes, and tlsward has listeners.",
            "[services.billing]",
            "listen = \"127.0.0.1:7001\"",
            "upstream = \"billing.internal:8443\"",
        ]
        .map(str::to_owned),
    );
    let place = kong.place.clone();
    kong.draft.note(Note::new(
        Kind::Decide,
        &place,
        "services",
        "Kong has its Services and routes elsewhere, in its database or in manifests",
        "add a table [services.NAME] for each, as at the end of the file",
    ));
    Ok(())
}

struct Kong<'d> {
    variables: Variables,
    prefix: &'static str,
    draft: &'d mut Draft,
    /// The file as a whole.
    place: Place,
}

impl Kong<'_> {
    /// A variable that is taken, so that it is not listed again.
    fn take(&mut self, name: &str) -> Option<(String, Variable)> {
        let variable = self.variables.remove(name)?;
        if variable.value.is_empty() && !variable.is_elsewhere {
            return None;
        }
        Some((name.to_owned(), variable))
    }

    /// One of nginx's `proxy_ssl_…`.
    fn proxy_ssl(&mut self, name: &str) -> Option<(String, Variable)> {
        self.take(&format!("{}{name}", self.prefix))
    }

    fn note(&mut self, kind: Kind, (name, variable): &(String, Variable), was: &str, now: &str) {
        self.draft
            .note(Note::new(kind, &variable.place, name, was, now));
    }

    /// Sets a key to a path; a value from elsewhere cannot be known.
    fn path(&mut self, key: &'static str, it: &(String, Variable)) -> bool {
        let (name, variable) = it;
        if variable.is_elsewhere {
            let now = format!("write {key} in [defaults.tls]");
            self.note(
                Kind::Decide,
                it,
                "comes from elsewhere (a Secret, a ConfigMap, another variable)",
                &now,
            );
            return false;
        }
        if !Path::new(&variable.value).is_absolute() || variable.value.contains('\0') {
            let now = format!("put it into a file, and write {key} with its whole path");
            self.note(
                Kind::Decide,
                it,
                "is no absolute path: Kong takes the certificate itself here too, as PEM or base64",
                &now,
            );
            return false;
        }
        let from = self.origin(name, &variable.place);
        let value = variable.value.clone();
        self.draft.defaults_tls.text(key, &value, from);
        true
    }

    fn trust(&mut self) {
        let own = self.proxy_ssl("TRUSTED_CERTIFICATE");
        let lua = self.take("KONG_LUA_SSL_TRUSTED_CERTIFICATE");
        match (&own, &lua) {
            (Some(ca), lua) => {
                if !self.path("ca", ca) {
                    self.no_ca();
                }
                if let Some(lua) = lua {
                    self.note(
                        Kind::Explained,
                        lua,
                        "is for Kong's own calls, of plugins for example",
                        "ca is that of the proxy",
                    );
                }
            }
            (None, Some(lua)) => {
                let mut list = lua
                    .1
                    .value
                    .split(',')
                    .map(str::trim)
                    .filter(|it| !it.is_empty());
                let (first, more) = (
                    list.next().unwrap_or_default().to_owned(),
                    list.next().is_some(),
                );
                if first == "system" {
                    let from = self.origin(&lua.0, &lua.1.place);
                    self.draft.defaults_tls.text("ca", "system", from);
                } else {
                    let variable = Variable {
                        value: first,
                        ..lua.1.clone()
                    };
                    if !self.path("ca", &(lua.0.clone(), variable)) {
                        self.no_ca();
                    }
                }
                let was = match more {
                    true => {
                        "is for Kong's own calls, and a list; without proxy_ssl_trusted_certificate its first entry is taken for the proxy too"
                    }
                    false => {
                        "is for Kong's own calls; without proxy_ssl_trusted_certificate it is taken for the proxy too"
                    }
                };
                self.note(
                    Kind::Decide,
                    lua,
                    was,
                    "see that ca is the CA of your upstreams; several go into one file",
                );
            }
            (None, None) => {
                self.no_ca();
                let place = self.place.clone();
                self.draft.note(Note::new(
                    Kind::Decide,
                    &place,
                    format!("{}TRUSTED_CERTIFICATE", self.prefix),
                    "is not set: Kong knows no CA to verify upstreams with",
                    "name the CA in ca; until then the platform's roots count",
                ));
            }
        }
        if let Some(crl) = self.proxy_ssl("CRL") {
            self.path("crl", &crl);
        }
    }

    /// Where a value comes from, as a remark.
    fn origin(&self, name: &str, place: &Place) -> String {
        openssl::origin(&self.place, name, place)
    }

    fn no_ca(&mut self) {
        let tls = &mut self.draft.defaults_tls;
        tls.remark("Put the file with the CA here that has issued the upstreams' certificates:");
        tls.text("ca", "system", "Kong had none");
    }

    fn verification(&mut self) {
        let verify = self.proxy_ssl("VERIFY");
        let global = self.take("KONG_TLS_CERTIFICATE_VERIFY");
        let is_on = |it: &Option<(String, Variable)>| {
            it.as_ref()
                .is_some_and(|it| ["on", "true"].contains(&&*it.1.value.to_ascii_lowercase()))
        };
        let verifies = is_on(&verify);
        if !verifies {
            let (name, place) = match &verify {
                Some((name, variable)) => (name.clone(), variable.place.clone()),
                None => (format!("{}VERIFY", self.prefix), self.place.clone()),
            };
            self.draft.note(Note::new(
                Kind::Unsafe,
                &place,
                name,
                match &verify {
                    Some((_, variable)) if variable.is_elsewhere => "is set elsewhere, and may be off",
                    Some(_) => "is not \"on\": any upstream is taken, whoever it is",
                    None => "is not set, and Kong's default is off: any upstream is taken, whoever it is",
                },
                "chain and name are verified",
            ));
        }
        if let Some(global) = &global {
            let was = match is_on(&Some(global.clone())) {
                true => "makes Kong refuse Services that do not verify",
                false => "lets Services go without verification",
            };
            self.note(Kind::Explained, global, was, "chain and name are verified");
        }
        match self.proxy_ssl("VERIFY_DEPTH") {
            Some(depth) => match depth.1.value.parse::<u8>() {
                Ok(count @ 0..=6) => {
                    let from = self.origin(&depth.0, &depth.1.place);
                    self.draft.defaults_tls.set("verify_depth", count.to_string(), from);
                }
                Ok(_) => self.note(
                    Kind::Explained,
                    &depth,
                    "allows more than 6 certificates between the server's and the CA's",
                    "6 is the most that is supported",
                ),
                Err(_) => self.note(
                    Kind::Decide,
                    &depth,
                    "is not a number (Kong's guide shows \"on\")",
                    "write verify_depth with a number from 0 to 6, counted as Kong counts; 0 is written until then, the strictest",
                ),
            },
            None if verifies => {
                self.draft.defaults_tls.set("verify_depth", "1", "nginx's default; tlsward's is 6");
            }
            None => {}
        }
        if self
            .draft
            .notes
            .iter()
            .any(|note| note.directive.ends_with("VERIFY_DEPTH") && note.kind == Kind::Decide)
        {
            self.draft
                .defaults_tls
                .set("verify_depth", "0", "until somebody has decided");
        }
        if let Some(name) = self.proxy_ssl("NAME") {
            self.note(
                Kind::Decide,
                &name,
                "is the name of every upstream",
                "write server_name into the service that it is for; in [defaults.tls] it would be that of all",
            );
        }
        if let Some(sni) = self.proxy_ssl("SERVER_NAME") {
            if sni.1.value.eq_ignore_ascii_case("off") {
                let from = self.origin(&sni.0, &sni.1.place);
                self.draft.defaults_tls.set("sni", "false", from);
            } else {
                self.note(Kind::Explained, &sni, "sends the upstream's name", "always");
            }
        }
        if let Some(protocols) = self.proxy_ssl("PROTOCOLS") {
            self.protocols(&protocols);
        }
        if let Some(reuse) = self.proxy_ssl("SESSION_REUSE") {
            if reuse.1.value.eq_ignore_ascii_case("off") {
                let from = self.origin(&reuse.0, &reuse.1.place);
                self.draft.defaults_tls.set("resumption", "false", from);
            } else {
                self.note(
                    Kind::Explained,
                    &reuse,
                    "is on",
                    "always, unless resumption = false",
                );
            }
        }
        for (name, was) in [
            (
                "CIPHERS",
                "restricts cipher suites, which tlsward does not let anybody set",
            ),
            (
                "CONF_COMMAND",
                "is a command of OpenSSL, which tlsward does not use",
            ),
        ] {
            if let Some(it) = self.proxy_ssl(name) {
                self.note(
                    Kind::NotCarried,
                    &it,
                    was,
                    "check with `tlsward probe` that the upstream takes tlsward's suites",
                );
            }
        }
    }

    fn protocols(&mut self, it: &(String, Variable)) {
        let words = it.1.value.split_whitespace();
        let versions: Vec<Version> = words.filter_map(Version::parse).collect();
        let from = self.origin(&it.0, &it.1.place);
        match (versions.iter().min(), versions.iter().max()) {
            (Some(Version::Tls13), _) => self.draft.defaults_tls.text("min_version", "1.3", from),
            (Some(min), Some(max)) if *max > Version::Old => {
                if *max == Version::Tls12 {
                    self.draft.defaults_tls.text("max_version", "1.2", from);
                }
                if *min == Version::Old {
                    self.note(
                        Kind::Unsafe,
                        it,
                        "allows versions before TLS 1.2",
                        "TLS 1.2 is the lowest",
                    );
                }
            }
            _ => self.note(
                Kind::Decide,
                it,
                "names no version that tlsward speaks",
                "let the upstreams speak TLS 1.2 or 1.3",
            ),
        }
    }

    fn identity(&mut self) {
        let switch = self.take("KONG_CLIENT_SSL");
        let client = (
            self.take("KONG_CLIENT_SSL_CERT"),
            self.take("KONG_CLIENT_SSL_CERT_KEY"),
        );
        let proxy = (
            self.proxy_ssl("CERTIFICATE"),
            self.proxy_ssl("CERTIFICATE_KEY"),
        );
        if let Some(password) = self.proxy_ssl("PASSWORD_FILE") {
            self.note(
                Kind::Decide,
                &password,
                "unlocks an encrypted key, and tlsward takes keys that are not encrypted",
                "openssl pkey -in KEY -out PLAIN, in a file that only tlsward's user can read",
            );
        }
        let is_on = switch
            .as_ref()
            .is_some_and(|it| ["on", "true"].contains(&&*it.1.value.to_ascii_lowercase()));
        let (pair, other) = match (&proxy.0, is_on) {
            (Some(_), _) => (proxy, client),
            (None, true) => (client, proxy),
            (None, false) => ((None, None), client),
        };
        for unused in [other.0, other.1].into_iter().flatten() {
            self.note(
                Kind::Explained,
                &unused,
                "is not in use: client_ssl is off, or proxy_ssl_certificate is set",
                "nothing is taken from it",
            );
        }
        if let Some(switch) = &switch {
            self.note(
                Kind::Explained,
                switch,
                "says whether Kong presents a certificate",
                "cert and key, or client_auth = false",
            );
        }
        match pair {
            (Some(cert), Some(key)) => {
                // Half of a pair would be a mistake in the file.
                let whole = self.path("cert", &cert) & self.path("key", &key);
                if !whole {
                    self.placeholder();
                }
            }
            (None, None) => {
                self.draft.defaults_tls.set(
                    "client_auth",
                    "false",
                    "Kong presents no certificate of its own; Services may",
                );
            }
            (cert, key) => {
                if let Some(it) = cert.as_ref().or(key.as_ref()) {
                    self.note(
                        Kind::Decide,
                        it,
                        "is half of a pair: certificate and key go together",
                        "write both cert and key",
                    );
                }
                self.placeholder();
            }
        }
    }

    /// An identity that somebody must fill in; none is presented instead, and nothing else.
    fn placeholder(&mut self) {
        self.draft.defaults_tls.drop_keys(&["cert", "key"]);
        self.draft.defaults_tls.hint("cert = \"/path/of/tls.crt\"");
        self.draft.defaults_tls.hint("key = \"/path/of/tls.key\"");
    }

    /// Everything that was not taken.
    fn rest(&mut self) {
        for (name, variable) in std::mem::take(&mut self.variables) {
            let is_tls = PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            let kind = match is_tls {
                true => Kind::NotCarried,
                false => Kind::Explained,
            };
            let (was, now) = match is_tls {
                true if !name.starts_with(self.prefix) => (
                    "sets for another part of Kong what is taken from elsewhere",
                    "write into the services that it is for what differs there",
                ),
                true => (
                    "has no counterpart",
                    "see in nginx's documentation what it does",
                ),
                false => (
                    "is about Kong itself, not about TLS to upstreams",
                    "nothing is taken from it",
                ),
            };
            self.draft
                .note(Note::new(kind, &variable.place, name, was, now));
        }
    }
}

/// The variables of Kong in a file, and the first line that sets something else.
fn read(source: &Source) -> (Variables, Option<Place>) {
    let mut variables = Variables::new();
    let mut strangers = None;
    let mut pending: Option<(String, Place)> = None;
    for (number, line) in source.text.lines().enumerate() {
        let place = source.at(number + 1);
        let line = line.trim();
        let line = line.strip_prefix("- ").unwrap_or(line).trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some((name, place)) = pending.take() {
            // The second line of an entry of an env list.
            let value = line.strip_prefix("value:");
            let variable = Variable {
                value: unquoted(value.unwrap_or_default()).to_owned(),
                place,
                is_elsewhere: value.is_none(),
            };
            variables.insert(name, variable);
            if value.is_some() || line.starts_with("valueFrom:") {
                continue;
            }
        }
        if let Some(name) = line.strip_prefix("name:") {
            let name = unquoted(name);
            if name.starts_with("KONG_") {
                pending = Some((name.to_owned(), place));
            }
            continue;
        }
        let line = ["export ", "ENV ", "-e ", "--env ", "Environment="]
            .iter()
            .find_map(|prefix| line.strip_prefix(prefix))
            .unwrap_or(line);
        // A whole entry in quotes, as lists of Compose have it.
        let line = unquoted(line.trim_end_matches('\\'));
        let Some(at) = line.find(['=', ':']) else {
            strangers.get_or_insert(place);
            continue;
        };
        let (name, value) = (line[..at].trim(), &line[at + 1..]);
        let name = name.trim_matches(['"', '\'']);
        if !name.starts_with("KONG_")
            || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        {
            strangers.get_or_insert(place);
            continue;
        }
        let value = unquoted(value);
        let variable = Variable {
            value: value.to_owned(),
            place,
            is_elsewhere: value.contains('$') || value.contains("{{"),
        };
        variables.insert(name.to_owned(), variable);
    }
    if let Some((name, place)) = pending {
        let variable = Variable {
            value: String::new(),
            place,
            is_elsewhere: true,
        };
        variables.insert(name, variable);
    }
    (variables, strangers)
}

/// Without the quotes around it, or a comment behind them.
fn unquoted(text: &str) -> &str {
    let text = text.trim();
    for quote in ['"', '\''] {
        if let Some(rest) = text.strip_prefix(quote)
            && let Some((inside, _)) = rest.split_once(quote)
        {
            return inside;
        }
    }
    text.split(" #").next().unwrap_or(text).trim_end()
}
