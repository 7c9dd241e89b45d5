// What ask.py does, with the Node SDK: node ask.cjs FOLDER, which is where npm put it.
const { createRequire } = require('node:module')
const { readFileSync } = require('node:fs')
const { OpenAI } = createRequire(process.argv[2] + '/x.js')('openai')

async function said(url, stream) {
  const sdk = new OpenAI({ apiKey: 'sk-x', baseURL: url + '/v1', maxRetries: 0, timeout: 1000 })
  const messages = [{ role: 'user', content: 'hello' }]
  const answer = await sdk.chat.completions.create({ model: 'gpt-4o-mini', messages, stream })
  if (!stream) return answer.choices[0].message.content
  let text = ''
  for await (const part of answer) text += part.choices[0].delta.content ?? ''
  return text
}

async function seen([url, stream]) {
  try {
    const text = await said(url, stream)
    return text === (stream ? 'ab' : 'well') ? 'the answer' : 'half an answer, and no error'
  } catch (error) {
    const name = '`' + error.constructor.name + '`'
    return name + (error.status ? ' ' + error.status : error.code ? ' `' + error.code + '`' : '')
  }
}

async function main() {
  const found = []
  for (const one of JSON.parse(readFileSync(0, 'utf8'))) {
    // its time-out ends with the head of an answer: a stream that stalls is waited for without end
    const hung = new Promise((resolve) => setTimeout(resolve, 6000, 'waits for ever'))
    found.push(await Promise.race([seen(one), hung]))
  }
  console.log(JSON.stringify(found))
  process.exit(0)
}
main()
