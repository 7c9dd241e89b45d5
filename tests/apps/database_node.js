// Node's pg on its defaults, a pool of ten over many tasks; prints what it saw as JSON.
const { Pool, Client } = require('pg')
const QueryStream = require('pg-query-stream')

const pool = new Pool({ connectionString: process.env.DATABASE_URL })

async function work(n) {
  const seen = []
  const table = `node_${n}`
  await pool.query(`create table ${table} (id serial primary key, body text, extra jsonb, at timestamptz)`)
  for (let k = 0; k < 5; k++) {
    const found = await pool.query({
      name: 'insert ' + table, // prepared by name, on whichever connection the pool gives
      text: `insert into ${table} (body, extra, at) values ($1, $2, $3) returning *`,
      values: [`b${k}`, { k }, new Date(Date.UTC(2026, 1, 2))],
    })
    seen.push(found.rows, found.fields.map((f) => f.name))
  }
  const client = await pool.connect()
  try {
    await client.query('begin')
    await client.query(`update ${table} set body = $1 where id = $2`, ['changed', 1])
    await client.query('savepoint s')
    await client.query(`insert into ${table} (id) values (1)`).catch((e) => seen.push([e.code, e.constraint]))
    await client.query('rollback to savepoint s')
    seen.push((await client.query(`select body from ${table} where id = 1`)).rows)
    await client.query('commit')
  } finally {
    client.release()
  }
  seen.push(await Promise.all([1, 2, 3, 4, 5].map((k) => pool.query('select $1::int as k', [k]).then((f) => f.rows[0]))))
  const streaming = await pool.connect()
  let sum = 0
  for await (const row of streaming.query(new QueryStream('select generate_series(1, 500) as k', [], { batchSize: 20 }))) sum += row.k
  streaming.release()
  seen.push(sum)
  const alone = new Client({ connectionString: process.env.DATABASE_URL })
  await alone.connect()
  const heard = new Promise((resolve) => alone.on('notification', (m) => resolve([m.channel, m.payload])))
  await alone.query(`listen ${table}`)
  await pool.query(`select pg_notify('${table}', 'news')`)
  seen.push(await heard)
  await alone.end()
  seen.push((await pool.query(`select id, body, extra, at from ${table} order by id`)).rows)
  return seen
}

Promise.all([...Array(Number(process.argv[2])).keys()].map(work))
  .then((seen) => console.log(JSON.stringify(seen)))
  .finally(() => pool.end())
