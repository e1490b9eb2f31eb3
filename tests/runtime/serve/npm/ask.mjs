// Asks a server by npm's clients of Cohere, and prints the ranking of each.
import { createCohere } from "@ai-sdk/cohere";
import { rerank } from "ai";
import { CohereClient, CohereClientV2 } from "cohere-ai";

const { address, key, query, documents, topN } = JSON.parse(process.argv[2]);
const model = "any";
const answers = {};

async function ask(name, rank) {
  try {
    answers[name] = { ranking: await rank() };
  } catch (error) {
    answers[name] = { status: error.statusCode, message: error.message };
  }
}

const scored = (results) => results.map((each) => [each.index, each.relevanceScore]);

await ask("cohere-ai 1", async () => {
  const client = new CohereClient({ token: key, environment: address });
  return scored((await client.rerank({ model, query, documents, topN })).results);
});
await ask("cohere-ai 2", async () => {
  const client = new CohereClientV2({ token: key, environment: address });
  return scored((await client.rerank({ model, query, documents, topN })).results);
});
await ask("@ai-sdk/cohere", async () => {
  const cohere = createCohere({ apiKey: key, baseURL: `${address}/v2` });
  const { ranking } = await rerank({ model: cohere.reranking(model), query, documents, topN });
  return ranking.map((each) => [each.originalIndex, each.score]);
});

console.log(JSON.stringify(answers));
