// As attend.wgsl, for heads of 32, 64 or 128 channels: attention of one query row and kvHead over one split. One workgroup of WARPS * 32 lanes takes
// the split's records one after the other:
//   (1) the whole record, some kB in one run of memory, comes into workgroup memory: every lane's loads are independent, and none needs the header;
//   (2) a descriptor of each block of 4 tokens, whatever its tier, and the queries times the segment's mean;
//   (3) scores: a lane takes half the channels of one token;
//   (4) weights exp(score - the segment's largest): a warp takes a head;
//   (5) weighted values: a lane takes 4 channels of a block.
// Codes of 3 and 4 bits are looked up two at a time, those of 1 and 2 bits computed four at a time; all are multiplied as the integers that they stand for,
// with queries and weights as integers of 15 bits in two bytes: dot4I8Packed, exact. Cells of 16 and 32 bits are read where they lie and multiplied as floats.
// `// each $x` ... `// end $x` stands for its lines once for each x (webgpu-prelude.ts, unroll): heads h < GROUP, vectors p < HALF_VECS, loads f < LOADS.
//
// A row's result does not depend on the other rows: splits follow from the cells alone, and unseen cells weigh nothing.
//
// Dispatch [splits, KV_HEADS, rows].

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> cache: array<vec4<u32>>;    // blocks of segments and exact parts
@group(0) @binding(2) var<storage, read> words: array<u32>;          // the same buffer
@group(0) @binding(3) var<storage, read> queries: array<f32>;
@group(0) @binding(4) var<storage, read> items: array<Item>;
@group(0) @binding(5) var<storage, read> splits: array<Split>;
@group(0) @binding(6) var<storage, read> segments: array<u32>;       // starts of segment blocks, in units of 16 bytes
@group(0) @binding(7) var<storage, read_write> partials: array<f32>; // [split, row, head]: maximum, sum, HEAD_DIM values
@group(0) @binding(8) var<storage, read_write> scoresOut: array<f32>; // [row, head, scoreStride]; padding cells NEVER

const MAX_BLOCKS = MAX_CELLS / 4u;
const WIDTH = WARPS * 32u;
/// 16-byte vectors of a half block of 4 bits: 8 channels each.
const VECS = HEAD_DIM / 8u;
/// Lanes that share a block of values, 4 channels each.
const V_LANES = HEAD_DIM / 4u;
const V_TEAMS = WIDTH / V_LANES;
/// Blocks whose scores are made at a time.
const K_BLOCKS = WIDTH / 8u;
/// Vectors of a record that are brought in; of longer ones only what comes before the codes.
const STAGE = LOADS * WIDTH;
const STAGED_HEAD = 64u;
/// 15-bit integers: 256 * a signed byte + another.
const FINE = 32512.0;
/// What (value scale / vBase) does not exceed: codes of 4 bits, or 8 bits of a vector with all its length in one channel.
const VALUE_BOUND = max(UNIT_INVERSE_4, sqrt(f32(HEAD_DIM)) / 254.0);
const PLACE = 0x7ffffffu;

/// One vector in nine is unused: blocks that are read side by side then lie in different banks.
var<workgroup> stage: array<vec4<u32>, STAGE + STAGE / 8u>;
/// [pair of codes][replica]: levels of both as bytes 0 and 2. 4 bits from entry 0, 3 bits from entry 256 on.
var<workgroup> lut: array<u32, 320u * REPLICAS>;
/// [tier]: vectors of a block of keys, of values; bytes of a scale of keys, of values (4 bits); nibbles of both (4 bits).
var<workgroup> tiers: array<vec4<u32>, 16>;
/// [block]: scores [head][token], floats; of blocks with float values, then weights. Of other blocks then, in their place, weights times scales:
/// [head] high and low bytes of 4 tokens. At the end, outputs on their way from team to team.
var<workgroup> area: array<u32, max(MAX_BLOCKS * GROUP * 4u, WARPS * GROUP * min(V_LANES, 32u) * 4u)>;
var<workgroup> blocks: array<vec4<u32>, MAX_BLOCKS>;
/// The queries, scaled: floats, and integers (high and low bytes of channels 0, 1, 4, 5 and of 2, 3, 6, 7 of a vector).
var<workgroup> qFloat: array<vec4<f32>, GROUP * VECS * 2u>;
var<workgroup> qInteger: array<vec4<u32>, GROUP * VECS>;
/// [head]: the query times the segment's mean; then the segment's largest score, factor of what was, of what comes, the softmax's sum so far.
var<workgroup> qMean: array<f32, GROUP>;
var<workgroup> softmax: array<vec4<f32>, GROUP>;
var<workgroup> blockCount: u32;

fn bytes(word: u32) -> vec4<f32> {
  return vec4<f32>(vec4<i32>(vec4(word << 24u, word << 16u, word << 8u, word)) >> vec4(24u));
}
fn halves(a: u32, b: u32) -> vec4<f32> { return vec4(unpack2x16float(a), unpack2x16float(b)); }
/// Bytes that 4 integers within -FINE..FINE are: high ones, low ones.
fn split4(x: vec4<i32>) -> vec2<u32> {
  let low = ((x + vec4(128)) & vec4(255)) - vec4(128);
  return vec2(pack4((x - low) >> vec4(8u)), pack4(low));
}
fn pack4(x: vec4<i32>) -> u32 {
  let b = bitcast<vec4<u32>>(x) & vec4(255u);
  return b.x | (b.y << 8u) | (b.z << 16u) | (b.w << 24u);
}

/// What entry of `lut` stands for which levels.
fn pairOf(entry: u32) -> u32 {
  if (entry < 256u) { return byteOf(LEVELS_4, entry & 15u) | (byteOf(LEVELS_4, entry >> 4u) << 16u); }
  // Two bits of both codes, then the third of both.
  let first = (entry & 3u) | ((entry >> 2u) & 4u);
  let second = ((entry >> 2u) & 3u) | ((entry >> 3u) & 4u);
  return byteOf(LEVELS_3, first) | (byteOf(LEVELS_3, second) << 16u);
}
/// A byte of up to 16, 4 in each word.
fn byteOf(four: vec4<u32>, code: u32) -> u32 {
  let word = select(select(four.x, four.y, code >= 4u), select(four.z, four.w, code >= 12u), code >= 8u);
  return (word >> ((code & 3u) * 8u)) & 255u;
}
/// Levels of a word's 4 pairs: bytes (0 low, 1 low, 0 high, 1 high), then 2 and 3; "low" is the code in the lower bits.
fn levels(pairs: u32, base: u32) -> vec2<u32> {
  let a = lut[((pairs << LOG_REPLICAS) & PAIR_MASK) + base];
  let b = lut[((pairs >> (8u - LOG_REPLICAS)) & PAIR_MASK) + base];
  let c = lut[((pairs >> (16u - LOG_REPLICAS)) & PAIR_MASK) + base];
  let d = lut[((pairs >> (24u - LOG_REPLICAS)) & PAIR_MASK) + base];
  return vec2(b * 256u + a, d * 256u + c);
}
const PAIR_MASK = 255u << LOG_REPLICAS;
const LUT_3 = 256u << LOG_REPLICAS;
/// Levels of 4 codes in the lowest bits of the bytes: -40, -12, 12, 40 is 28 * the lower bit + 52 * the upper one - 40; no sum leaves its byte.
fn two(s: u32) -> u32 { return ((s & 0x03030303u) * 26u + ((s & 0x01010101u) * 2u + 0x58585858u)) ^ 0x80808080u; }
fn one(s: u32) -> u32 { return ((s & 0x01010101u) * 0xf0u) ^ 0xd8d8d8d8u; }
/// Words of two chunks, ordered as `levels` does.
fn inPairs(a: u32, b: u32) -> vec2<u32> { return vec2((a & 0xffffu) | (b << 16u), (a >> 16u) | (b & 0xffff0000u)); }
/// Vectors of the third bit of 3-bit codes come behind those of the lower two.
const HIGH_VECS = VECS / 2u;

/// A record: its first vector in the cache, its vectors, how many of them are staged; tokens of its segment.
struct Record { at: u32, vectors: u32, staged: u32, tokens: u32 }
fn recordOf(segment: u32, kvHead: u32) -> Record {
  let block = segments[segment];
  let offset = words[block * 4u + 3u + kvHead];
  var end = words[block * 4u + 2u];
  for (var h = KV_HEADS - 1u; h > kvHead; h--) {
    let next = words[block * 4u + 3u + h];
    if (next != 0u) { end = next; }
  }
  // A head without a record has no vectors.
  let vectors = select((end - offset) / 16u, 0u, offset == 0u);
  let staged = select(vectors, STAGED_HEAD, vectors > STAGE);
  return Record(block + offset / 16u, vectors, staged, words[block * 4u + 1u]);
}
fn padded(vector: u32) -> u32 { return vector + vector / 8u; }
fn staged(word: u32) -> u32 { return stage[padded(word / 4u)][word & 3u]; }
/// A word of the record's codes.
fn codeWord(r: Record, vector: u32, part: u32) -> u32 {
  if (vector < r.staged) { return stage[padded(vector)][part]; }
  return words[(r.at + vector) * 4u + part];
}

/// A block's descriptor: keys' and values' places in vectors from the record's start, each with its bits' nibble (1..4, 8; 9 and 10 for 16 and 32) from
/// bit 27 on; places of the keys' and values' scales in words from there, the former with the number of tokens, 1..4, from bit 28 on.
fn describe(r: Record, block: u32) {
  let first = stage[0];
  let counts = vec3(first.z, first.w, stage[1].x);
  let present = select(first.x & 0xffffu, 0u, r.vectors == 0u);
  let kinds = countOneBits(present);
  let mean = pad4(8u + kinds);
  let mapped = kinds > 1u || (counts.x & 255u) < r.tokens;
  var scaleAt = mean + HEAD_DIM + select(0u, pad4((r.tokens + 1u) / 2u), mapped);
  // Codes come behind all scales.
  var codeAt = scaleAt;
  var left = present;
  for (var i = 0u; i < kinds; i++) {
    let both = tiers[firstTrailingBit(left)].z;
    left &= left - 1u;
    codeAt += pad4(countOf(counts, i)) * ((both & 15u) + (both >> 4u));
  }
  codeAt = (codeAt + 15u) / 16u;
  left = present;
  var before = 0u;
  for (var i = 0u; i < kinds; i++) {
    let tier = tiers[firstTrailingBit(left)];
    left &= left - 1u;
    let n = countOf(counts, i);
    let here = (n + 3u) / 4u;
    let b = block - before;
    let vScaleAt = scaleAt + here * 4u * (tier.z & 15u);
    if (block >= before && b < here) {
      blocks[block] = vec4(
        (codeAt + b * tier.x) | ((tier.w & 15u) << 27u),
        (codeAt + here * tier.x + b * tier.y) | ((tier.w >> 4u) << 27u),
        (scaleAt / 4u + b * (tier.z & 15u)) | (min(4u, n - b * 4u) << 28u),
        vScaleAt / 4u + b * (tier.z >> 4u));
    }
    before += here;
    scaleAt = vScaleAt + here * 4u * (tier.z >> 4u);
    codeAt += here * (tier.x + tier.y);
  }
  if (block == 0u) { blockCount = before; }
}
fn nibbleOf(bits: u32) -> u32 { return select(bits, select(9u, 10u, bits == 32u), bits > 8u); }

/// 8 channels of a token in a float half, from vec * 8 on. `bits` 16 or 32; `place` in vectors of the cache.
struct Floats { low: vec4<f32>, high: vec4<f32> }
fn floats(bits: u32, place: u32, token: u32, vec: u32) -> Floats {
  let at = place + (token * HEAD_DIM + vec * 8u) * bits / 128u;
  let first = cache[at];
  if (bits == 16u) { return Floats(halves(first.x, first.y), halves(first.z, first.w)); }
  return Floats(bitcast<vec4<f32>>(first), bitcast<vec4<f32>>(cache[at + 1u]));
}
/// 4 scales of a block, at a word.
fn scales(at: u32, bits: u32, base: f32) -> vec4<f32> {
  if (bits == 8u) { return halves(staged(at), staged(at + 1u)); }
  return scalesOf(fourBytes(staged(at)), bits, base);
}
/// One token's scale; `at` as above.
fn scaleOf(at: u32, token: u32, bits: u32, base: f32) -> f32 {
  if (bits == 8u) {
    let both = unpack2x16float(staged(at + token / 2u));
    return select(both.x, both.y, (token & 1u) != 0u);
  }
  let code = (staged(at) >> (token * 8u)) & 255u;
  return select(base * exp2((f32(code) - 255.0) / 32.0) * unitInverse(bits), 0.0, code == 0u);
}
/// 4 tokens of a block and head.
fn fourScores(at: u32) -> vec4<f32> {
  return bitcast<vec4<f32>>(vec4(area[at * 4u], area[at * 4u + 1u], area[at * 4u + 2u], area[at * 4u + 3u]));
}

@compute @workgroup_size(WIDTH)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let split = splits[id.x];
  let item = items[split.item];
  let kvHead = id.y;
  let row = id.z;
  let warp = lane / 32u;
  let own = lane & 31u;
  let replica = lane & (REPLICAS - 1u);
  let exact = split.count == 0u;

  var record = Record();
  // each $f
  var load$f = vec4<u32>();
  // end $f
  if (!exact) {
    record = recordOf(split.first, kvHead);
    // each $f
    if ($fu * WIDTH + lane < record.staged) { load$f = cache[record.at + $fu * WIDTH + lane]; }
    // end $f
  }

  for (var entry = lane; entry < 320u; entry += WIDTH) {
    let pair = pairOf(entry);
    for (var r = 0u; r < REPLICAS; r++) { lut[(entry << LOG_REPLICAS) + ((r + lane) & (REPLICAS - 1u))] = pair; }
  }
  if (lane < TIER_COUNT) {
    let k = kBitsOf(lane);
    let v = vBitsOf(lane);
    tiers[lane] = vec4(
      blockVectors(k), blockVectors(v), scaleBytes(k) | (scaleBytes(v) << 4u), nibbleOf(k) | (nibbleOf(v) << 4u));
  }
  // A warp makes a head's integers, a lane a vector's.
  for (var turn = 0u; turn < (GROUP + WARPS - 1u) / WARPS; turn++) {
    let head = min(turn * WARPS + warp, GROUP - 1u);
    var a = vec4<f32>();
    var b = vec4<f32>();
    if (own < VECS) {
      let at = item.q + (row * HEADS + kvHead * GROUP + head) * HEAD_DIM + own * 8u;
      a = params.scale * vec4(queries[at], queries[at + 1u], queries[at + 2u], queries[at + 3u]);
      b = params.scale * vec4(queries[at + 4u], queries[at + 5u], queries[at + 6u], queries[at + 7u]);
    }
    let m = max(abs(a), abs(b));
    let largest = maximumOf(max(max(m.x, m.y), max(m.z, m.w)), lane);
    let inverse = select(FINE / largest, 0.0, largest < 1e-30);
    if (own < VECS) {
      let x = split4(vec4<i32>(round(vec4(a.x, a.y, b.x, b.y) * inverse)));
      let y = split4(vec4<i32>(round(vec4(a.z, a.w, b.z, b.w) * inverse)));
      qInteger[head * VECS + own] = vec4(x, y);
      qFloat[(head * VECS + own) * 2u] = a;
      qFloat[(head * VECS + own) * 2u + 1u] = b;
    }
    // What an integer of a query stands for travels with the softmax until the queries are read.
    if (own == 0u) { softmax[head] = vec4(NEVER, 0.0, largest / FINE, 0.0); }
  }
  workgroupBarrier();
  // each $h
  let qStep$h = softmax[$hu].z;
  var out$h = vec4<f32>();
  // end $h

  let scoreRow = (row * HEADS + kvHead * GROUP) * params.scoreStride + split.scores;
  let kToken = lane & 3u;
  let kVec = ((lane >> 2u) & 1u) * HALF_VECS;
  let vVec = (lane % V_LANES) / 2u;
  let vPart = (lane & 1u) * 2u;
  let vTeam = lane / V_LANES;

  for (var i = 0u; i < max(1u, split.count); i++) {
    // (1)
    let now = record;
    var kBase = 0.0;
    var vBase = 0.0;
    var base = 0u;
    if (!exact) {
      base = now.at;
      // each $f
      if ($fu * WIDTH + lane < now.staged) { stage[padded($fu * WIDTH + lane)] = load$f; }
      // end $f
      if (i + 1u < split.count) {
        record = recordOf(split.first + i + 1u, kvHead);
        if (PREFETCH) {
          // each $f
          if ($fu * WIDTH + lane < record.staged) { load$f = cache[record.at + $fu * WIDTH + lane]; }
          // end $f
        }
      }
    }
    workgroupBarrier();

    // (2)
    if (exact) {
      // A piece of the exact part reads as one group of floats.
      let seen = min(SEGMENT_TOKENS, max(item.visible + row, split.first) - split.first);
      let n = (seen + 3u) / 4u;
      let nibble = nibbleOf(item.exactBits);
      let k = exactAt(item, kvHead, split.first) + lane * blockVectors(item.exactBits);
      if (lane < n) {
        blocks[lane] = vec4(k | (nibble << 27u), (k + exactHalf(item)) | (nibble << 27u), min(4u, seen - lane * 4u) << 28u, 0u);
      }
      if (lane == 0u) { blockCount = n; }
    } else {
      let bases = stage[0];
      kBase = unpack2x16float(bases.x).y;
      vBase = unpack2x16float(bases.y).x;
      for (var b = lane; b < 64u; b += WIDTH) { describe(now, b); }
      // Lanes of the last warp take a head each.
      let head = lane - (WIDTH - 32u);
      if (lane >= WIDTH - 32u && head < GROUP) {
        let at = pad4(8u + countOneBits(bases.x & 0xffffu)) / 4u;
        var high = 0;
        var low = 0;
        for (var v = 0u; v < VECS; v++) {
          let x = inPairs(staged(at + v * 2u), staged(at + v * 2u + 1u));
          let q = qInteger[head * VECS + v];
          high += dot4I8Packed(x.x, q.x) + dot4I8Packed(x.y, q.z);
          low += dot4I8Packed(x.x, q.y) + dot4I8Packed(x.y, q.w);
        }
        qMean[head] = f32(high * 256 + low) * unpack2x16float(bases.y).y;
      }
    }
    workgroupBarrier();
    let count = blockCount;
    // A lane without a block repeats the last one, unheard.
    let lastBlock = max(count, 1u) - 1u;

    // (3)
    if (KEYS) {
      for (var first = 0u; first < stepsOf(count, MAX_BLOCKS); first += K_BLOCKS) {
        let block = first + lane / 8u;
        let d = blocks[min(block, lastBlock)];
        let nibble = d.x >> 27u;
        let place = d.x & PLACE;
        // each $h
        var x$h = 0.0;
        var mean$h = 0.0;
        // end $h
        var factor = 1.0;
        if (nibble <= 8u) {
          // each $h
          var high$h = 0;
          var low$h = 0;
          // end $h
          // each $p
          {
            let v = kVec + $pu;
            var w: vec2<u32>;
            if (nibble == 4u) {
              w = levels(codeWord(now, place + v, kToken), replica);
            } else if (nibble == 8u) {
              w = inPairs(codeWord(now, place + v * 2u, kToken), codeWord(now, place + v * 2u + 1u, kToken));
            } else if (nibble == 1u) {
              let s = codeWord(now, place + v / 4u, kToken) >> ((v & 3u) * 2u);
              w = inPairs(one(s), one(s >> 1u));
            } else {
              let s = codeWord(now, place + v / 2u, kToken) >> ((v & 1u) * 4u);
              if (nibble == 2u) {
                w = inPairs(two(s), two(s >> 2u));
              } else {
                let third = codeWord(now, place + HIGH_VECS + v / 4u, kToken) >> ((v & 3u) * 2u);
                w = levels((s & 0x0f0f0f0fu) | ((third & 0x03030303u) << 4u), LUT_3 + replica);
              }
            }
            // each $h
            {
              let q = qInteger[$hu * VECS + v];
              high$h += dot4I8Packed(w.x, q.x) + dot4I8Packed(w.y, q.z);
              low$h += dot4I8Packed(w.x, q.y) + dot4I8Packed(w.y, q.w);
            }
            // end $h
          }
          // end $p
          factor = scaleOf(d.z & 0xfffffffu, kToken, nibble, kBase);
          // each $h
          x$h = f32(high$h * 256 + low$h) * qStep$h;
          mean$h = qMean[$hu] * qStep$h;
          // end $h
        } else {
          let bits = select(16u, 32u, nibble == 10u);
          // each $p
          let f$p = floats(bits, base + place, kToken, kVec + $pu);
          // end $p
          // each $p
          // each $h
          x$h += dot(f$p.low, qFloat[($hu * VECS + kVec + $pu) * 2u]) + dot(f$p.high, qFloat[($hu * VECS + kVec + $pu) * 2u + 1u]);
          // end $h
          // end $p
        }
        let there = kToken < (d.z >> 28u);
        // each $h
        {
          let s = (x$h + swap1(x$h, lane, 4u)) * factor + mean$h;
          if (block < count && kVec == 0u) { area[(block * GROUP + $hu) * 4u + kToken] = bitcast<u32>(select(NEVER, s, there)); }
        }
        // end $h
      }
      workgroupBarrier();
    }

    // (4)
    let unit = VALUE_BOUND * max(vBase, 1e-30) / FINE;
    for (var turn = 0u; turn < (GROUP + WARPS - 1u) / WARPS; turn++) {
      let head = min(turn * WARPS + warp, GROUP - 1u);
      let heard = turn * WARPS + warp < GROUP;
      var largest = NEVER;
      for (var b = own; b < count; b += 32u) {
        let s = fourScores(b * GROUP + head);
        largest = max(largest, max(max(s.x, s.y), max(s.z, s.w)));
      }
      largest = maximumOf(largest, lane);
      let before = softmax[head];
      let grown = max(before.x, largest);
      let share = exp(largest - grown);
      var sum = 0.0;
      if (heard) {
        for (var b = own; b < count; b += 32u) {
          let d = blocks[b];
          let nibble = d.y >> 27u;
          let s = fourScores(b * GROUP + head);
          let w = select(exp(s - largest), vec4(0.0), s <= vec4(NEVER));
          sum += (w.x + w.y) + (w.z + w.w);
          if (params.scoreStride > 0u) {
            let to = scoreRow + i * MAX_CELLS + head * params.scoreStride + b * 4u;
            scoresOut[to] = s.x;
            scoresOut[to + 1u] = s.y;
            scoresOut[to + 2u] = s.z;
            scoresOut[to + 3u] = s.w;
          }
          let at = (b * GROUP + head) * 4u;
          if (nibble <= 8u) {
            let both = split4(vec4<i32>(min(round(w * scales(d.w, nibble, vBase) / unit), vec4(FINE))));
            area[at] = both.x;
            area[at + 1u] = both.y;
          } else {
            for (var t = 0u; t < 4u; t++) { area[at + t] = bitcast<u32>(w[t]); }
          }
        }
      }
      sum = sumOf(sum, lane);
      if (heard && own == 0u) {
        let shrink = exp(before.x - grown);
        softmax[head] = vec4(grown, shrink, share, before.w * shrink + share * sum);
      }
    }
    workgroupBarrier();

    // (5) Channels 8 * vVec + vPart + (0, 1, 4, 5).
    // each $h
    var high$h = vec4<i32>();
    var low$h = vec4<i32>();
    let share$h = softmax[$hu].z;
    out$h *= softmax[$hu].y;
    // end $h
    if (VALUES) {
      for (var block = vTeam; block < count; block += V_TEAMS) {
        let d = blocks[block].yz;
        let nibble = d.x >> 27u;
        let place = d.x & PLACE;
        let at = block * GROUP * 4u;
        if (nibble <= 8u) {
          // 4 tokens of a channel each.
          var c0: u32;
          var c1: u32;
          var c4: u32;
          var c5: u32;
          if (nibble == 4u || nibble == 3u) {
            var x: vec2<u32>;
            var y: vec2<u32>;
            if (nibble == 4u) {
              x = levels(codeWord(now, place + vVec, vPart), replica);
              y = levels(codeWord(now, place + vVec, vPart + 1u), replica);
            } else {
              let shift = (vVec & 1u) * 4u;
              let third = (vVec & 3u) * 2u;
              let high = place + HIGH_VECS + vVec / 4u;
              x = levels(((codeWord(now, place + vVec / 2u, vPart) >> shift) & 0x0f0f0f0fu) |
                (((codeWord(now, high, vPart) >> third) & 0x03030303u) << 4u), LUT_3 + replica);
              y = levels(((codeWord(now, place + vVec / 2u, vPart + 1u) >> shift) & 0x0f0f0f0fu) |
                (((codeWord(now, high, vPart + 1u) >> third) & 0x03030303u) << 4u), LUT_3 + replica);
            }
            c0 = (x.x & 0xffffu) | (x.y << 16u);
            c1 = (y.x & 0xffffu) | (y.y << 16u);
            c4 = (x.x >> 16u) | (x.y & 0xffff0000u);
            c5 = (y.x >> 16u) | (y.y & 0xffff0000u);
          } else if (nibble == 2u) {
            let x = codeWord(now, place + vVec / 2u, vPart) >> ((vVec & 1u) * 4u);
            let y = codeWord(now, place + vVec / 2u, vPart + 1u) >> ((vVec & 1u) * 4u);
            c0 = two(x);
            c1 = two(y);
            c4 = two(x >> 2u);
            c5 = two(y >> 2u);
          } else if (nibble == 8u) {
            c0 = codeWord(now, place + vVec * 2u, vPart);
            c1 = codeWord(now, place + vVec * 2u, vPart + 1u);
            c4 = codeWord(now, place + vVec * 2u + 1u, vPart);
            c5 = codeWord(now, place + vVec * 2u + 1u, vPart + 1u);
          } else {
            let x = codeWord(now, place + vVec / 4u, vPart) >> ((vVec & 3u) * 2u);
            let y = codeWord(now, place + vVec / 4u, vPart + 1u) >> ((vVec & 3u) * 2u);
            c0 = one(x);
            c1 = one(y);
            c4 = one(x >> 1u);
            c5 = one(y >> 1u);
          }
          // each $h
          {
            let w = vec2(area[at + $hu * 4u], area[at + $hu * 4u + 1u]);
            high$h += vec4(dot4I8Packed(c0, w.x), dot4I8Packed(c1, w.x), dot4I8Packed(c4, w.x), dot4I8Packed(c5, w.x));
            low$h += vec4(dot4I8Packed(c0, w.y), dot4I8Packed(c1, w.y), dot4I8Packed(c4, w.y), dot4I8Packed(c5, w.y));
          }
          // end $h
        } else {
          // What lies past the written slots may be no number.
          let bits = select(16u, 32u, nibble == 10u);
          let n = d.y >> 28u;
          let f0 = floats(bits, base + place, 0u, vVec);
          let f1 = floats(bits, base + place, 1u, vVec);
          let f2 = floats(bits, base + place, 2u, vVec);
          let f3 = floats(bits, base + place, 3u, vVec);
          let p0 = select(vec4(f0.low.xy, f0.high.xy), vec4(f0.low.zw, f0.high.zw), vPart == 2u);
          let p1 = select(vec4(f1.low.xy, f1.high.xy), vec4(f1.low.zw, f1.high.zw), vPart == 2u);
          let p2 = select(vec4(f2.low.xy, f2.high.xy), vec4(f2.low.zw, f2.high.zw), vPart == 2u);
          let p3 = select(vec4(f3.low.xy, f3.high.xy), vec4(f3.low.zw, f3.high.zw), vPart == 2u);
          // each $h
          {
            let w = share$h * fourScores(block * GROUP + $hu);
            out$h += w.x * p0;
            out$h += select(vec4<f32>(), w.y * p1, n > 1u);
            out$h += select(vec4<f32>(), w.z * p2, n > 2u);
            out$h += select(vec4<f32>(), w.w * p3, n > 3u);
          }
          // end $h
        }
      }
    }
    // each $h
    out$h += share$h * unit * vec4<f32>(high$h * 256 + low$h);
    // end $h
    if (!PREFETCH && i + 1u < split.count) {
      // each $f
      if ($fu * WIDTH + lane < record.staged) { load$f = cache[record.at + $fu * WIDTH + lane]; }
      // end $f
    }
    workgroupBarrier();
  }

  // Over the teams of a warp, then over the warps, then to memory.
  // each $h
  {
    var x = out$h;
    if (V_LANES <= 16u) { x += swap4(x, lane, 16u); }
    if (V_LANES <= 8u) { x += swap4(x, lane, 8u); }
    if (own < V_LANES) {
      for (var c = 0u; c < 4u; c++) { area[((warp * GROUP + $hu) * V_LANES + own) * 4u + c] = bitcast<u32>(x[c]); }
    }
  }
  // end $h
  workgroupBarrier();
  if (lane >= V_LANES) { return; }
  // each $h
  {
    var x = vec4<f32>();
    for (var w = 0u; w < WARPS; w++) { x += fourScores((w * GROUP + $hu) * V_LANES + lane); }
    let to = ((id.x * params.rows + row) * HEADS + kvHead * GROUP + $hu) * (HEAD_DIM + 2u);
    if (lane == 0u) {
      partials[to] = softmax[$hu].x;
      partials[to + 1u] = softmax[$hu].w;
    }
    for (var c = 0u; c < 4u; c++) { partials[to + 2u + vVec * 8u + vPart + c + select(0u, 2u, c > 1u)] = x[c]; }
  }
  // end $h
}
