//! Completes the OpenAPI descriptions of the endpoints.

use utoipa::OpenApi;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{Object, Schema, SchemaType, Type};
use utoipa::openapi::{
    ContentBuilder, Header, InfoBuilder, OpenApiBuilder, Ref, RefOr, Required, Response,
    ResponseBuilder,
};
use utoipa_axum::router::OpenApiRouter;

use super::Described;
use crate::daemon::api::{DEADLINE, ErrorAnswer, ErrorKind, IDEMPOTENCY_KEY, IDEMPOTENCY_REPLAYED};
use crate::daemon::service::Service;

/// Endpoints with their descriptions.
pub(super) type Endpoints = OpenApiRouter<Service>;

/// Adds the parameters and responses that all operations share.
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
    for (path, item) in &mut paths.paths {
        let PathItem { get, put, post, delete, .. } = item;
        for (method, operation) in [("get", get), ("put", put), ("post", post), ("delete", delete)]
        {
            let Some(operation) = operation else { continue };
            operation.operation_id = Some(operation_id(method, path));
            let changes = if method == "get" { Changes::Nothing } else { Changes::Something };
            common(operation, changes);
        }
    }
    components.responses.insert(ERROR.to_owned(), error_response().into());
    OpenApiBuilder::new().info(info).paths(paths).components(Some(components)).build()
}

/// Whether a request mutates state.
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
            "A name for this request, 1 to 128 visible ASCII characters. A request that took effect and \
             is sent again with the same key is not carried out again: it gets the answer that was \
             given, for 24 hours, with `idempotency-replayed: true`. A request that was refused runs \
             again. Another request with the key of an earlier one is refused with 422.",
        ));
        let replayed =
            Header::new(Schema::Object(Object::with_type(SchemaType::Type(Type::String))));
        for (status, response) in &mut operation.responses.responses {
            if let (true, RefOr::T(response)) = (status.starts_with('2'), response) {
                response.headers.insert(IDEMPOTENCY_REPLAYED.to_owned(), replayed.clone().into());
            }
        }
    }
    let is_path = |parameter: &&mut RefOr<Parameter>| matches!(parameter, RefOr::T(one) if one.parameter_in == ParameterIn::Path);
    let mut named = parameters.iter_mut().filter(is_path).peekable();
    let mut statuses = vec!["400", "500", "503", "504"];
    if named.peek().is_some() {
        statuses.extend(["404", "409"]);
    }
    for parameter in named {
        if let RefOr::T(parameter) = parameter {
            parameter.schema = Some(Object::with_type(SchemaType::Type(Type::String)).into());
        }
    }
    if changes == Changes::Something {
        statuses.extend(["404", "408", "409", "413", "415", "422"]);
    }
    let error = || RefOr::Ref(Ref::new(format!("#/components/responses/{ERROR}")));
    for status in statuses.into_iter().chain(["default"]) {
        operation.responses.responses.entry(status.to_owned()).or_insert_with(error);
    }
}

/// Name of the shared error response.
const ERROR: &str = "Error";

fn error_response() -> Response {
    let mut json = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorAnswer")));
    if let Ok(example) = serde_json::to_value(ErrorAnswer::new(
        ErrorKind::Conflict,
        "/mnt is in use; unmount lazily",
    )) {
        json = json.example(Some(example));
    }
    ResponseBuilder::new()
        .description("Refused or failed: what happened, to what, and what to do")
        .content("application/json", json.build())
        .build()
}

/// Returns a unique operation id: the method and the segments of the path.
fn operation_id(method: &str, path: &str) -> String {
    let words = path.split('/').filter(|word| !word.is_empty() && *word != "v1");
    let words = words.map(|word| word.trim_matches(['{', '}']).replace('.', "_"));
    std::iter::once(method.to_owned()).chain(words).collect::<Vec<_>>().join("_")
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
    use super::super::document;

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
    fn tools_find_operation_ids_and_schemas() {
        let document: serde_json::Value =
            serde_json::from_str(&document().to_pretty_json().unwrap()).unwrap();
        let mut ids = std::collections::BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap();
                assert!(ids.insert(id.to_owned()), "two operations are called {id}");
                let parameters = operation["parameters"].as_array().unwrap();
                for parameter in parameters {
                    assert!(parameter["schema"].is_object(), "{method} {path}: {parameter}");
                }
                let named = |name: &str| {
                    let fits =
                        |one: &&serde_json::Value| one["name"] == name && one["in"] == "path";
                    parameters.iter().filter(fits).count()
                };
                for word in path.split('/').filter_map(|word| word.strip_prefix('{')) {
                    assert_eq!(named(word.trim_end_matches('}')), 1, "{method} {path}");
                }
                let responses = operation["responses"].as_object().unwrap();
                for status in ["400", "500", "503", "504", "default"] {
                    assert!(responses.contains_key(status), "{method} {path}: {status}");
                }
                for (status, response) in responses {
                    let refers = response["$ref"] == "#/components/responses/Error";
                    assert!(
                        refers || response["description"].is_string(),
                        "{method} {path} {status}"
                    );
                }
            }
        }
        assert!(document["components"]["responses"]["Error"]["content"].is_object());
    }

    #[test]
    fn the_document_in_the_tree_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        let made = super::super::openapi().unwrap();
        assert!(kept == made, "the API has changed: `inlay daemon openapi > docs/openapi.json`");
    }
}
