//! The scheduler without a driver.
