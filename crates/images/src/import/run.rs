//! Dispatches an import by its source.

use inlay_store::pack::FileSink;

use super::{
    FileLayer, ImportError, ImportOptions, Imported, Progress, Source, StdinLayer, import_dir,
    import_docker_archive, import_oci, import_registry, import_tar,
};

/// Imports `source` as a tree. File contents go to `sink`.
pub fn import(
    source: &Source,
    options: &ImportOptions,
    sink: &mut dyn FileSink,
    progress: &dyn Progress,
) -> Result<Imported, ImportError> {
    let tree_only = |tree| Imported { tree, config: Vec::new() };
    match source {
        Source::Dir(path) => import_dir(path, options, sink, progress).map(tree_only),
        Source::Tar(path) => {
            import_tar(&mut FileLayer::new(path.clone()), options, sink, progress).map(tree_only)
        }
        Source::TarStdin => {
            import_tar(&mut StdinLayer::default(), options, sink, progress).map(tree_only)
        }
        Source::Oci { dir, tag } => import_oci(dir, tag.as_deref(), options, sink, progress),
        Source::DockerArchive { file, reference } => {
            import_docker_archive(file, reference.as_deref(), options, sink, progress)
        }
        Source::Registry(reference) => import_registry(reference, options, sink, progress),
    }
}
