//! Which bytes to fetch next.
