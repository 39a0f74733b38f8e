// out [rows, n] = x [rows, k] times the transposed weight [n, k]; with ADDS, plus another value of the output's shape; with GATED,
// silu(x times the gate's weight) times that. Up to MOST_STEPS products of the same x, one after the other.
// One workgroup of 64 lanes for 4 outputs of ROWS rows: lanes take units of 8 channels in turn, then their sums are joined in a fixed
// order, the same for every number of rows. Rows past the last are computed and unheard: the workspace has room for them.
// Dispatch [all quads, rows / ROWS].

var<workgroup> sums: array<vec4<f32>, 64u * ROWS>;

/// Eight sums of eight lanes, then the sum of those; lanes below ROWS have a row's.
fn joined(lane: u32) -> vec4<f32> {
  workgroupBarrier();
  var part = vec4<f32>();
  if (lane < 8u * ROWS) {
    let at = lane * 8u;
    for (var i = 0u; i < 8u; i++) { part += sums[at + i]; }
  }
  workgroupBarrier();
  if (lane < 8u * ROWS) { sums[lane] = part; }
  workgroupBarrier();
  var y = vec4<f32>();
  if (lane < ROWS) {
    y = sums[lane * 8u];
    for (var i = 1u; i < 8u; i++) { y += sums[lane * 8u + i]; }
  }
  workgroupBarrier();
  return y;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  step = steps[0];
  var quad = id.x;
  for (var i = 1u; i < MOST_STEPS && quad >= step.quads; i++) {
    quad -= step.quads;
    step = steps[i];
  }
  let first = id.y * ROWS;
  prepare(lane);
  // each $h
  var sum$h = vec4<f32>();
  var gate$h = vec4<f32>();
  // end $h
  for (var unit = lane; unit < (step.k + 7u) / 8u; unit += 64u) {
    let w = unitAt(step.weight, quad, unit);
    var g: Unit;
    if (GATED) { g = unitAt(step.gate, quad, unit); }
    // each $h
    {
      let a = operand(first + $hu, unit * 2u);
      let b = select(vec4<f32>(), operand(first + $hu, unit * 2u + 1u), unit * 8u + 4u < step.k);
      let total = (a.x + a.y) + (a.z + a.w) + ((b.x + b.y) + (b.z + b.w));
      sum$h = fma(w.minimum, vec4(total), fma(w.scale, w.low * a + w.high * b, sum$h));
      if (GATED) { gate$h = fma(g.minimum, vec4(total), fma(g.scale, g.low * a + g.high * b, gate$h)); }
    }
    // end $h
  }
  // each $h
  sums[$hu * 64u + lane] = sum$h;
  // end $h
  var y = joined(lane);
  if (GATED) {
    // each $h
    sums[$hu * 64u + lane] = gate$h;
    // end $h
    let g = joined(lane);
    y *= g / (1.0 + exp(-g));
  }
  if (lane < ROWS) {
    let row = (first + lane) * step.ldOut + quad;
    if (ADDS) { y = values[step.other + row] + y; }
    values[step.out + row] = y;
  }
}
