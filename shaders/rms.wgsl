var<workgroup> squares: array<f32, 64>;

/// 1 / sqrt(mean(x^2) + epsilon) of the row from `from_` on, by 64 lanes.
fn rmsFactor(from_: u32, lane: u32) -> f32 {
  var sum = 0.0;
  for (var c = lane; c < step.k / 4u; c += 64u) {
    let x = values[from_ + c];
    sum += dot(x, x);
  }
  squares[lane] = sum;
  workgroupBarrier();
  // Every lane adds up all 64, in order.
  var total = 0.0;
  for (var i = 0u; i < 64u; i++) { total += squares[i]; }
  return 1.0 / sqrt(total / f32(step.k) + step.epsilon);
}
