// Rotates a row's queries, keys and values and appends keys and values to the row's exact part:
//   q, k: rotary embedding (channel i pairs with i + HEAD_DIM / 2), then the orthonormal Hadamard matrix; v: Hadamard only. PLAIN: without Hadamard.
// A row may also stand for queries alone, turned back to the position that they have for segments behind which gaps were closed.
// Dispatch [rows, HEADS + 2 * KV_HEADS], 64 threads over the channels of one head.

struct Row {
  exact: u32,       // the exact part's start in the cache, in units of 16 bytes
  capacity: u32,    // 0: queries alone
  exactBits: u32,   // 16 or 32
  slot: u32,        // where the row goes
  angle: u32,       // the row of `cosines` and `sines` for its position
  row: u32,         // among q, k and v
  to: u32,          // among queries
  turn: u32,        // the row of `cosines` and `sines` for the tokens that it is turned back by; 0: none
}

@group(0) @binding(0) var<storage, read> rows: array<Row>;
@group(0) @binding(1) var<storage, read> cosines: array<f32>;          // [angles, HEAD_DIM / 2]
@group(0) @binding(2) var<storage, read> sines: array<f32>;
@group(0) @binding(3) var<storage, read> q: array<f32>;                // [rows, HEADS, HEAD_DIM]
@group(0) @binding(4) var<storage, read> k: array<f32>;                // [rows, KV_HEADS, HEAD_DIM]
@group(0) @binding(5) var<storage, read> v: array<f32>;
@group(0) @binding(6) var<storage, read_write> queries: array<f32>;    // as q, rotated
@group(0) @binding(7) var<storage, read_write> words: array<u32>;      // the cache

var<workgroup> x: array<f32, HEAD_DIM>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let row = rows[id.x];
  let isQuery = id.y < HEADS;
  if (!isQuery && row.capacity == 0u) { return; }
  let isKey = !isQuery && id.y < HEADS + KV_HEADS;
  let kvHead = id.y - HEADS - select(KV_HEADS, 0u, isKey);
  let half = HEAD_DIM / 2u;
  for (var c = thread; c < HEAD_DIM; c += 64u) {
    var own: f32;
    var pair: f32;
    let partner = select(c - half, c + half, c < half);
    if (isQuery) {
      let at = (row.row * HEADS + id.y) * HEAD_DIM;
      own = q[at + c];
      pair = q[at + partner];
    } else {
      let at = (row.row * KV_HEADS + kvHead) * HEAD_DIM;
      own = select(v[at + c], k[at + c], isKey);
      pair = k[at + partner];
    }
    if (isQuery || isKey) {
      let angle = row.angle * half + c % half;
      var turned = vec2(cosines[angle], sines[angle]);
      if (row.turn != 0u) {
        let back = row.turn * half + c % half;
        turned = vec2(turned.x * cosines[back] + turned.y * sines[back], turned.y * cosines[back] - turned.x * sines[back]);
      }
      own = own * turned.x + select(pair, -pair, c < half) * turned.y;
    }
    x[c] = own;
  }
  workgroupBarrier();
  if (!PLAIN) { hadamard(thread); }

  if (isQuery) {
    for (var c = thread; c < HEAD_DIM; c += 64u) { queries[(row.to * HEADS + id.y) * HEAD_DIM + c] = x[c]; }
    return;
  }
  let halfVectors = (row.capacity * HEAD_DIM * row.exactBits + 127u) / 128u;
  let at = (row.exact + (2u * kvHead + select(1u, 0u, isKey)) * halfVectors) * 4u;
  if (row.exactBits == 32u) {
    for (var c = thread; c < HEAD_DIM; c += 64u) { words[at + row.slot * HEAD_DIM + c] = bitcast<u32>(x[c]); }
  } else {
    for (var c = thread; c < half; c += 64u) {
      words[at + row.slot * half + c] = toF16(x[2u * c]) | (toF16(x[2u * c + 1u]) << 16u);
    }
  }
}
