"""The words by which `statements` sees where a statement of a report begins and ends."""

import re

# A section at the beginning of a sentence: "IMPRESSION: No effusion."
SECTION = re.compile(
    r"[\s\"']*((?:(?:clinical|relevant|final|preliminary|overall)\s+)?(?:findings?|impressions?|conclusions?|report|"
    r"results?|opinion|summary|assessment|interpretation|diagnos[ie]s|indications?|history|information|comparisons?|"
    r"technique|recommendations?|reason for [a-z ]{1,30}))\s*:")
# A line that is a heading although nothing marks it as one.
TITLE_LINE = re.compile(
    r"(?:(?:findings?|impressions?|conclusions?|report|results?|opinion|summary|assessment|interpretation|lungs?|"
    r"airways?|heart|cardiac|pleura|pleural space|mediastinum|hila|bones?|(?:support )?devices?|lines|tubes|abdomen|"
    r"soft tissues|chest wall|diaphragm|other|indications?|history|clinical history|technique|comparisons?|"
    r"recommendations?)(?:\s*(?:and|&|/|,)\s*)?)+")
# A line that begins with a key: "Heart: normal".
KEY_LINE = re.compile(r"[\"'{]?[A-Za-z][A-Za-z0-9 /&,()'\-]{1,60}[\"']?\s*(?::|=)(?=\s|$|[A-Z\"'])")
# The end of a line that goes on in the next one.
CONTINUES = re.compile(
    r"(?:[,/(&+\-]|\b(?:and|or|nor|but|with|without|of|in|at|on|to|for|from|by|as|than|the|an?|no|not|is|are|was|were|"
    r"has|have|had|been|be|may|might|could|can|cannot|would|should|neither|either|any|this|that|these|which|there|vs|"
    r"versus|per|into|within|over|above|below|its|between|near|through|along|behind|under|(?<!\bthe )(?:left|right)|"
    r"small|tiny|trace|mild|moderate|large|severe|minimal|acute|chronic|focal|diffuse|pleural|pulmonary|cardiac|"
    r"mediastinal|patchy|new|old|stable|increased|decreased|evidence|possible|likely|probable|bilateral|upper|lower|middle|mid|"
    r"basilar|bibasilar|apical|hilar|lateral|interstitial|vascular|linear|hazy|remains?|appears?|seen|represents?|"
    r"reflects?|also|again|only|both|displaced|rib|bony|airspace|space|"
    r"(?!\w*(?:megaly|anomaly))\w+ly))\s*$", re.IGNORECASE)
# A line that begins with a capital letter, and not with a name that has one inside a sentence.
CAPITAL = re.compile(r"(?!(?:Swan|Kerley|Port|Dobb?hoff|Hickman|Ghon|Hampton|Chilaiditi|Bochdalek|Morgagni|Ganz|Ewart|"
                      r"Jude|Doctor|Dr|Mr|Mrs|Ms)\b)(?:[A-Z][a-z]+\b|A(?=\s+[a-z]))")
# The beginning of a line that begins a statement, in lower case too.
BEGINS = re.compile(
    r"(?:no|there|the|an?|(?:(?:normal|enlarged|clear|stable)\s+)?(?:heart|lungs|cardi\w+|mediast\w+)|left|right|small|"
    r"tiny|trace|mild|moderate|severe|large|bilateral|bibasilar|possible|probable|patchy|old|picc|endotracheal|et|ng|"
    r"tracheostomy|pacemaker)\b", re.IGNORECASE)
# The beginning of a line that continues the one before it.
CONTINUATION = re.compile(
    r"(?:or|and|nor|but|with|without|of|in|at|on|to|for|from|by|as|than|is|are|was|were|has|have|had|may|might|could|can|"
    r"cannot|which|that|versus|vs|due|secondary|consistent|compatible|suggest\w*|represent\w*|reflect\w*|seen|noted|"
    r"identified|also|likely|possibly|not|however)\b", re.IGNORECASE)
