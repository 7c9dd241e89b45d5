// Prisma on its defaults, over the adapter that it has used since 7; prints what it saw as JSON.
const { PrismaPg } = require('@prisma/adapter-pg')
const { PrismaClient } = require(process.env.PRISMA_CLIENT)

const prisma = new PrismaClient({ adapter: new PrismaPg({ connectionString: process.env.DATABASE_URL }) })

async function work(n) {
  const seen = []
  for (let k = 0; k < 5; k++) {
    const made = await prisma.item.create({
      data: { name: `i${n}.${k}`, extra: { k }, parts: { create: [{ label: 'a' }, { label: 'b' }] } },
      include: { parts: true },
    })
    seen.push([made.name, made.extra, made.size, made.parts.map((p) => p.label)])
  }
  await prisma.item.create({ data: { name: `i${n}.0`, extra: {} } }).catch((e) => seen.push(e.code))
  seen.push(
    await prisma.$transaction(async (tx) => {
      await tx.item.updateMany({ where: { name: { startsWith: `i${n}.` } }, data: { size: { increment: n } } })
      return tx.item.aggregate({ where: { name: { startsWith: `i${n}.` } }, _sum: { size: true } })
    }),
  )
  await prisma
    .$transaction([
      prisma.item.updateMany({ where: { name: `i${n}.1` }, data: { size: 1000 } }),
      prisma.item.create({ data: { name: `i${n}.1`, extra: {} } }),
    ])
    .catch((e) => seen.push(e.code))
  seen.push(await prisma.$queryRaw`select size from "Item" where name = ${`i${n}.1`}`)
  seen.push(await prisma.item.findMany({ where: { name: { startsWith: `i${n}.` } }, orderBy: { name: 'asc' }, select: { name: true, size: true } }))
  return seen
}

async function main() {
  for (const sql of [
    'create table "Item" (id serial primary key, name text not null unique, extra jsonb not null, size int not null default 3)',
    'create table "Part" (id serial primary key, label text not null, "itemId" int not null references "Item")',
  ])
    await prisma.$executeRawUnsafe(sql)
  console.log(JSON.stringify(await Promise.all([...Array(Number(process.argv[2])).keys()].map(work))))
}

main().finally(() => prisma.$disconnect())
