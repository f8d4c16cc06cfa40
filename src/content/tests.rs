//! Reading files of a packed snapshot.
