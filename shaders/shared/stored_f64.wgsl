// Elements that are what they are computed in: f64.

fn load(stored: f64) -> f64 {
    return stored;
}

fn store(value: f64) -> f64 {
    return value;
}
