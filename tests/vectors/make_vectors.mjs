// Writes the known answers in this directory with the JavaScript IPFS libraries,
// which share no code with Vision-O3. See README.md for how to run it.
import { createHash } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { CarWriter } from '@ipld/car'
import * as dagPB from '@ipld/dag-pb'
import { importer } from 'ipfs-unixfs-importer'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { balanced } from 'ipfs-unixfs-importer/layout'

const MIB = 2 ** 20
const PERIOD = 241
const CONTENT = 'byte i of the file is (i * 167 + 13) mod 241'
const SHOWN = 600 // bytes; shorter sidecars are written out in hexadecimal

const run = Uint8Array.from({ length: PERIOD * 4096 }, (_, i) => (i * 167 + 13) % PERIOD)

async function * content (size) {
  for (let at = 0; at < size; at += run.length) {
    yield run.subarray(0, Math.min(run.length, size - at))
  }
}

async function name (size, chunkSize, width) {
  const nodes = new Map() // only nodes are kept, so a GiB needs no memory
  const store = {
    put (cid, block) {
      if (cid.code === dagPB.code) nodes.set(cid.toString(), block)
      return cid
    }
  }
  const files = importer([{ path: 'f', content: content(size) }], store, {
    cidVersion: 1,
    rawLeaves: true,
    reduceSingleLeafToSelf: true,
    wrapWithDirectory: false,
    chunker: fixedSize({ chunkSize }),
    layout: balanced({ maxChildrenPerNode: width })
  })
  let root
  for await (const file of files) root = file.cid
  return { root, nodes }
}

function depthFirst (cid, nodes) {
  if (cid.code !== dagPB.code) return []
  const bytes = nodes.get(cid.toString())
  return [{ cid, bytes }, ...dagPB.decode(bytes).Links.flatMap(link => depthFirst(link.Hash, nodes))]
}

async function sidecar (root, blocks) {
  const { writer, out } = CarWriter.create([root])
  const parts = []
  const drained = (async () => { for await (const part of out) parts.push(part) })()
  for (const block of blocks) await writer.put(block)
  await writer.close()
  await drained
  return Buffer.concat(parts)
}

async function vector (size, chunkSize, width, full) {
  const { root, nodes } = await name(size, chunkSize, width)
  const answer = { size, cid: root.toString() }
  const blocks = depthFirst(root, nodes)
  if (blocks.length > 0) {
    const car = await sidecar(root, blocks)
    answer.sidecar_size = car.length
    answer.sidecar_sha256 = createHash('sha256').update(car).digest('hex')
    if (full) {
      answer.nodes = blocks.map(block => block.cid.toString())
      if (car.length <= SHOWN) answer.sidecar = car.toString('hex')
    }
  }
  return answer
}

async function write (file, profile, chunkSize, width, full, sizes) {
  const vectors = []
  for (const size of sizes) vectors.push(await vector(size, chunkSize, width, full))
  const document = { profile, chunk_size: chunkSize, width, content: CONTENT, vectors }
  writeFileSync(new URL(file, import.meta.url), JSON.stringify(document, null, 1) + '\n')
}

await write('boundaries.json', 'unixfs-v1-2025', MIB, 1024, true, [
  0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 5 * MIB + 7, 33 * MIB + 1000,
  1024 * MIB - 1, 1024 * MIB, 1024 * MIB + 1, 1025 * MIB + 5
])

// Every number of leaves that four levels of nodes hold, the last one short and full.
const leaves = Array.from({ length: 3 ** 4 }, (_, i) => i + 1)
await write('shapes.json', 'chunks of 8 bytes, width 3', 8, 3, false, [0, ...leaves.flatMap(n => [8 * n - 3, 8 * n])])
