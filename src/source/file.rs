#![allow(clippy::all, missing_docs, clippy::disallowed_methods)]
use super::*;
pub(crate) mod read {
    use super::super::*;
    #[derive(Clone, Debug, PartialEq)]
    pub(crate) struct Digest(u8);
    pub(crate) fn digest(_: &Result<Material, Explained>) -> Digest {
        Digest(0)
    }
    fn part(p: &std::path::Path) -> Result<Part, Explained> {
        std::fs::read(p)
            .map(|b| Part::new(p.display().to_string(), b))
            .map_err(|e| {
                Explained::new(
                    crate::failure::Reason::IdentityMissing,
                    format!("{}: {e}", p.display()),
                )
            })
    }
    pub(crate) fn read_all(s: &SourceSet) -> Vec<Reading> {
        s.iter()
            .map(|key| Reading {
                key: key.clone(),
                material: match key {
                    SourceKey::Config(p) => part(p).map(Material::Config),
                    SourceKey::Identity(IdentitySource::Pair { cert, key }) => {
                        part(cert).and_then(|c| {
                            part(key).map(|k| {
                                Material::Identity(IdentityMaterial::Pair { cert: c, key: k })
                            })
                        })
                    }
                    SourceKey::Identity(IdentitySource::Bundle(p)) => {
                        part(p).map(|b| Material::Identity(IdentityMaterial::Bundle(b)))
                    }
                    SourceKey::Trust(TrustSource {
                        ca: crate::config::CaSource::Path(p),
                        ..
                    }) => part(p).map(|b| {
                        Material::Trust(TrustMaterial {
                            ca: vec![b],
                            crl: None,
                        })
                    }),
                    _ => panic!(),
                },
            })
            .collect()
    }
}
pub(crate) struct Watcher(
    mpsc::UnboundedReceiver<Command>,
    mpsc::Sender<Batch>,
    latest::Sender<Health>,
);
impl Watcher {
    pub(crate) fn new(
        _: WatchOptions,
        c: mpsc::UnboundedReceiver<Command>,
        b: mpsc::Sender<Batch>,
        h: latest::Sender<Health>,
    ) -> Self {
        Self(c, b, h)
    }
    pub(crate) async fn run(mut self) {
        let _ = &self.2;
        while let Some(_) = self.0.recv().await {}
    }
}
