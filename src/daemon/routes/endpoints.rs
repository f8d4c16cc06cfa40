//! Endpoints and the document that describes them, put together from the same places, so that there is
//! none without a description.

use std::collections::BTreeSet;

use axum::Router;
use axum::routing::MethodRouter;
use utoipa::OpenApi;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{Object, Schema, SchemaType, Type};
use utoipa::openapi::{
    ContentBuilder, Header, InfoBuilder, OpenApiBuilder, Ref, RefOr, Required, ResponseBuilder,
};

use super::Described;
use crate::daemon::api::{DEADLINE, ErrorAnswer, ErrorKind, IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED};
use crate::daemon::service::Service;

/// Some endpoints and their description.
pub(super) struct Endpoints {
    pub(super) router: Router<Service>,
    pub(super) document: utoipa::openapi::OpenApi,
    /// The paths of `router`.
    pub(super) paths: BTreeSet<String>,
}

impl Endpoints {
    /// None yet, with the description `D` of those to come.
    pub(super) fn of<D: OpenApi>() -> Self {
        Self { router: Router::new(), document: D::openapi(), paths: BTreeSet::new() }
    }

    /// What is asked for at `path`.
    pub(super) fn route(mut self, path: &str, methods: MethodRouter<Service>) -> Self {
        self.paths.insert(path.to_owned());
        self.router = self.router.route(path, methods);
        self
    }

    /// These and others.
    pub(super) fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.document.merge(other.document);
        self.paths.extend(other.paths);
        self
    }
}

/// What all endpoints have in common, said of each.
pub(super) fn finish(document: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    let info = InfoBuilder::new()
        .title("inlay")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "What the daemon of inlay answers on its unix socket, `STATE/run/daemon.sock`. Paths \
             begin with the version; within a version, fields are only added.",
        ))
        .build();
    let mut components = document.components.unwrap_or_default();
    if let Some(more) = Described::openapi().components {
        components.schemas.extend(more.schemas);
    }
    let mut paths = document.paths;
    for item in paths.paths.values_mut() {
        let PathItem { get, put, post, delete, .. } = item;
        for operation in [get].into_iter().flatten() {
            common(operation, Changes::Nothing);
        }
        for operation in [put, post, delete].into_iter().flatten() {
            common(operation, Changes::Something);
        }
    }
    OpenApiBuilder::new().info(info).paths(paths).components(Some(components)).build()
}

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Changes {
    Nothing,
    Something,
}

fn common(operation: &mut Operation, changes: Changes) {
    let parameters = operation.parameters.get_or_insert_default();
    parameters.push(header(
        DEADLINE,
        "How long the caller waits: a number and `ms`, `s` or `m`; at most 10 minutes count. When it \
         is over, what was asked for is given up, and the answer is 504.",
    ));
    if changes == Changes::Something {
        parameters.push(header(
            IDEMPOTENCY_KEY,
            "A name for this request, 1 to 128 visible ASCII characters. A request that is sent again \
             with the same key is not carried out again: it gets the answer that was given, for 24 \
             hours, with `idempotency-replayed: true`. Another request with the key of an earlier one \
             is refused with 422.",
        ));
        let replayed =
            Header::new(Schema::Object(Object::with_type(SchemaType::Type(Type::String))));
        for (status, response) in &mut operation.responses.responses {
            if let (true, RefOr::T(response)) = (status.starts_with('2'), response) {
                response.headers.insert(IDEMPOTENCY_REPLAYED.to_owned(), replayed.clone().into());
            }
        }
    }
    let mut json = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorAnswer")));
    if let Ok(example) = serde_json::to_value(ErrorAnswer::new(
        ErrorKind::Conflict,
        "/mnt is in use; unmount lazily",
    )) {
        json = json.example(Some(example));
    }
    let error = ResponseBuilder::new()
        .description("Refused or failed: what happened, to what, and what to do")
        .content("application/json", json.build())
        .build();
    operation.responses.responses.insert("default".to_owned(), error.into());
}

fn header(name: &str, description: &str) -> RefOr<Parameter> {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(description))
        .schema(Some(Object::with_type(SchemaType::Type(Type::String))))
        .build()
        .into()
}

#[cfg(test)]
mod tests {
    use super::super::{document, endpoints};

    #[test]
    fn every_endpoint_is_described_and_nothing_else() {
        let document = document();
        let described = document.paths.paths.keys().cloned().collect();
        assert_eq!(endpoints().paths, described);
    }

    #[test]
    fn every_type_that_is_named_is_described() {
        let document = document().to_pretty_json().unwrap();
        let value: serde_json::Value = serde_json::from_str(&document).unwrap();
        for name in document.split("#/components/schemas/").skip(1) {
            let name = name.split('"').next().unwrap();
            let found = &value["components"]["schemas"][name];
            assert!(found.is_object(), "{name}");
        }
    }

    #[test]
    fn the_document_in_the_tree_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        let made = super::super::openapi().unwrap();
        assert!(kept == made, "the API has changed: `inlay daemon openapi > docs/openapi.json`");
    }
}
