// As attend.wgsl, for heads of 64 or 128 channels: attention of one query row and kvHead over one split, whose blocks of 4 tokens run past in two loops
// without a barrier. Where they lie stands in a table (attend-describe.wgsl). One workgroup of WARPS * 32 lanes.
//
// Codes are multiplied as the integers that they stand for (dot4I8Packed, exact): queries have 8 bits a channel (15 for keys of 8 bits), relative to their
// largest; the weights of a block 7 bits, times a power of two. So it is in the WebAssembly kernels, too. Logarithms are binary: the queries are scaled by
// log2(e), and references are whole numbers.
// (1) Blocks whose values have 1 to 4 bits: LANES lanes take a block's keys and leave its weights, relative to a power of two above the largest product of a
//     probability and a value's scale; then LANES lanes take its values, in integers of one unit for all.
// (2) Blocks of floats and of 8 bits: a softmax of its own for each few lanes, keys and values at once.
// Lines `// here: NAME` stand for the file of that name, a part of `main`; its functions of codes are in attend-levels.wgsl.
// `// each $x` ... `// end $x` stands for its lines once for each x (webgpu-prelude.ts, unroll): heads h < GROUP, pairs of chunks of a
// lane p < 2, tokens t < 4.
//
// A row's result does not depend on the other rows: splits follow from the cells alone, and unseen cells weigh nothing.
//
// Dispatch [splits, KV_HEADS, rows].

@group(0) @binding(6) var<storage, read> table: array<vec4<u32>>;    // as attend-describe.wgsl writes it

const WIDTH = WARPS * 32u;
/// Lanes of a block of codes, two pairs of chunks each; of a block of floats, 8 channels each.
const LANES = HEAD_DIM / 16u;
const MAX_BLOCKS = SEGMENTS * MAX_CELLS / 4u;
/// Words of the exponents of a block's heads, 16 bits each.
const EXPONENTS = (GROUP + 1u) / 2u;
const TEAMS = WIDTH / LANES;
const VECS = HEAD_DIM / 8u;
const FLOAT_TEAMS = WIDTH / VECS;
/// 15-bit integers: 256 * a signed byte + another.
const FINE_MOST = 32512.0;
/// A weight of 1: 7 bits, shifted by 8.
const UNIT = 32512.0;
const PLACE = 0x7ffffffu;
const LOG2_E = 1.44269504f;
const LN_2 = 0.69314718f;
/// Before anything was seen; and what a zero vector's scale counts as, so that no sum of weights grows out of a float.
const LOWEST = -32000.0;
const LEAST_SCALE = -40.0;

// Little workgroup memory lets many workgroups stay on a multiprocessor.
/// [pair of codes]: levels of both as bytes 0 and 2; 4 bits from entry 0, 3 bits from entry 256 on.
var<workgroup> lut: array<u32, 320u>;
/// [block][head]: weights of 4 tokens as bytes. Then values as [warp][head][channel], relative to the warp's reference.
var<workgroup> shared_: array<u32, max(MAX_BLOCKS * GROUP, WARPS * GROUP * HEAD_DIM)>;
/// [block]: exponents that the weights of 2 heads are relative to, signed.
var<workgroup> exponents: array<u32, MAX_BLOCKS * EXPONENTS>;
/// The queries, scaled: floats, and integers (high and low bytes of channels 0, 1, 4, 5 and of 2, 3, 6, 7 of a vector).
var<workgroup> qFloat: array<vec4<f32>, GROUP * VECS * 2u>;
var<workgroup> qInteger: array<vec4<u32>, GROUP * VECS>;
/// [head]: what an integer of a query stands for.
var<workgroup> qStep: array<f32, GROUP>;
/// [record]: logarithms of the bases of scales, keys' and values'.
var<workgroup> bases: array<vec2<f32>, SEGMENTS>;
/// [record][head]: the query times the segment's mean.
var<workgroup> qMean: array<f32, SEGMENTS * GROUP>;
/// [warp][head]: reference and sum.
var<workgroup> perWarp: array<vec2<f32>, WARPS * GROUP>;

@compute @workgroup_size(WIDTH)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  // What is far away is sent for at once, in the order in which it will be there.
  let kvHead = id.y;
  let row = id.z;
  let tableAt = (id.x * KV_HEADS + kvHead) * TABLE;
  let split = splits[id.x];
  let head = table[tableAt];
  let ofRecord = lane / VECS;
  let record = table[tableAt + 1u + min(ofRecord, SEGMENTS - 1u)];
  let item = items[split.item];
  let warp = lane / 32u;
  let own = lane & 31u;
  let exact = split.count == 0u;
  // A piece of the exact part reads as one group of floats.
  let seen = min(split.to, max(item.visible + row, split.first) - split.first);
  let hidden = select(0u, split.from_, exact);
  let mostCells = select(SEGMENTS * MAX_CELLS, split.to, exact);
  let count = select(head.x, (seen + 3u) / 4u, exact);
  let firstCoded = select(min(head.y, count), count, exact);
  // A lane without a block repeats the last one, unheard.
  let lastBlock = max(count, 1u) - 1u;
  let blocksAt = tableAt + 1u + SEGMENTS;
  let scoreRow = (row * HEADS + kvHead * GROUP) * params.scoreStride + split.scores;

  let sub = lane % LANES;
  let pair = sub * 2u;
  let team = lane / LANES;
  let upper = (sub & (LANES / 2u)) != 0u;
  let odd = (sub & (LANES / 4u)) != 0u;
  let token = select(0u, 2u, upper) + select(0u, 1u, odd);
  let keeps = (sub & (LANES / 4u - 1u)) == 0u;
  var next = vec4<u32>();
  var after = vec4<u32>();
  var next0 = vec4<u32>();
  var next1 = vec4<u32>();
  var nextK = 0u;
  var nextV = 0u;
  var place = 0u;
  var placeAfter = 0u;
  var mean = vec2<u32>();
  if (ofRecord < split.count) {
    let at = record.x + (lane % VECS) * 2u;
    mean = vec2(words[at], words[at + 1u]);
  }
  if (firstCoded < count) {
    next = table[blocksAt + min(firstCoded + team, lastBlock)];
    after = table[blocksAt + min(firstCoded + team + TEAMS, lastBlock)];
    place = table[blocksAt + min(firstCoded + team, lastBlock)].y;
    placeAfter = table[blocksAt + min(firstCoded + team + TEAMS, lastBlock)].y;
    let at = firstVector(next.x, pair);
    next0 = cache[at];
    next1 = cache[secondVector(next.x, pair, at)];
    nextK = words[next.z + select(0u, token / 2u, (next.x >> 27u) == 8u)];
    nextV = words[next.z + (next.w & 255u)];
  }

  // A warp makes a head's integers, a lane a vector's.
  for (var turn = 0u; turn < (GROUP + WARPS - 1u) / WARPS; turn++) {
    let head = min(turn * WARPS + warp, GROUP - 1u);
    var a = vec4<f32>();
    var b = vec4<f32>();
    if (own < VECS) {
      let at = split.q + (row * HEADS + kvHead * GROUP + head) * HEAD_DIM + own * 8u;
      let scale = params.scale * LOG2_E;
      a = scale * vec4(queries[at], queries[at + 1u], queries[at + 2u], queries[at + 3u]);
      b = scale * vec4(queries[at + 4u], queries[at + 5u], queries[at + 6u], queries[at + 7u]);
    }
    let m = max(abs(a), abs(b));
    let largest = maximumOf(max(max(m.x, m.y), max(m.z, m.w)), lane);
    let inverse = select(FINE_MOST / largest, 0.0, largest < 1e-30);
    if (own < VECS) {
      let x = split4(vec4<i32>(round(vec4(a.x, a.y, b.x, b.y) * inverse)));
      let y = split4(vec4<i32>(round(vec4(a.z, a.w, b.z, b.w) * inverse)));
      qInteger[head * VECS + own] = vec4(x, y);
      qFloat[(head * VECS + own) * 2u] = a;
      qFloat[(head * VECS + own) * 2u + 1u] = b;
    }
    if (own == 0u) { qStep[head] = largest / FINE_MOST; }
  }
  if (!exact) { fillLut(lane); }
  workgroupBarrier();

  // The queries times the means, a lane 8 channels.
  {
    let v = lane % VECS;
    let heard = ofRecord < split.count;
    let x = inPairs(mean.x, mean.y);
    let step = unpack2x16float(record.z).x;
    if (heard && v == 0u) { bases[ofRecord] = log2(max(unpack2x16float(record.y), vec2(1e-30))); }
    // each $h
    {
      let q = qInteger[$hu * VECS + v];
      var sum = f32((dot4I8Packed(x.x, q.x) + dot4I8Packed(x.y, q.z)) * 256 + dot4I8Packed(x.x, q.y) + dot4I8Packed(x.y, q.w));
      for (var mask = VECS / 2u; mask > 0u; mask /= 2u) { sum += swap1(sum, lane, mask); }
      if (heard && v == 0u) { qMean[ofRecord * GROUP + $hu] = sum * (step * qStep[$hu]); }
    }
    // end $h
  }
  workgroupBarrier();

  // here: attend-codes

  // here: attend-floats

  // Over the warps, to memory.
  for (var i = lane; i < GROUP * HEAD_DIM; i += WIDTH) {
    let h = i / HEAD_DIM;
    var most = LOWEST;
    for (var w = 0u; w < WARPS; w++) { most = max(most, perWarp[w * GROUP + h].x); }
    var x = 0.0;
    var sum = 0.0;
    if (count > 0u) {
      for (var w = 0u; w < WARPS; w++) {
        let part = perWarp[w * GROUP + h];
        let factor = exp2(part.x - most);
        x += bitcast<f32>(shared_[w * GROUP * HEAD_DIM + i]) * factor;
        sum += part.y * factor;
      }
    }
    let to = ((id.x * params.rows + row) * HEADS + kvHead * GROUP + h) * (HEAD_DIM + 2u);
    partials[to + 2u + i % HEAD_DIM] = x;
    if (i % HEAD_DIM == 0u) {
      partials[to] = select(most * LN_2, NEVER, count == 0u);
      partials[to + 1u] = sum;
    }
  }
}
